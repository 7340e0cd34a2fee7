"""The functions by which the command line knows a recipe, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

from stepstack import config
from stepstack.config import CONFIGS, ROOT, ConfigError, RunConfig

if TYPE_CHECKING:
    import torch

    from recipes.orz import recipe as orz
    from recipes.orz.config import Config as OrzConfig
    from recipes.perception import recipe as perception
    from recipes.perception.config import Config as PerceptionConfig
    from recipes.steplaw import recipe as steplaw
    from recipes.steplaw.config import Config as SteplawConfig
    from recipes.stepvideo import recipe as stepvideo
    from recipes.stepvideo.config import Config as StepvideoConfig
    from stepstack.core.run import Run
    from stepstack.harness.engine import Engine
    from stepstack.harness.task import Task

C = TypeVar("C", bound=RunConfig)


class Recipe(Protocol[C]):
    """The functions of recipes/<name>/recipe.py, a module; its config class stands in recipes/<name>/config.py."""

    @property
    def Config(self) -> type[C]:
        """The class that a config file of this recipe is validated into."""
        ...

    def train(self, run: Run[C]) -> None:
        """Compose the parts, call one loop, show what was learned."""
        ...

    def describe(self, cfg: C) -> dict[str, Any]:
        """Numbers that follow from those of a config, for ``train --dry-run``."""
        ...

    def prepare(self, cfg: C) -> str:
        """Write the data that a config reads; returns a line to print."""
        ...

    def tasks(self, cfg: C) -> list[Task]:
        """The splits of the config's data as evaluation tasks."""
        ...

    def open_engine(self, cfg: C, folder: Path, device: torch.device) -> Engine:
        """A model folder that answers requests."""
        ...

    def write_report(self, folder: Path) -> Path:
        """Write runs/<name>/report.html from what stands in the folder."""
        ...


if TYPE_CHECKING:  # the type checker holds every recipe to the protocol
    _orz: Recipe[OrzConfig] = orz
    _perception: Recipe[PerceptionConfig] = perception
    _steplaw: Recipe[SteplawConfig] = steplaw
    _stepvideo: Recipe[StepvideoConfig] = stepvideo


def load(name: str) -> Recipe[RunConfig]:
    """The module recipes/<name>/recipe.py. ConfigError where there is none."""
    _check(name)
    return cast(Recipe[RunConfig], import_module(f"recipes.{name}.recipe"))


@overload
def load_config(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> RunConfig: ...


@overload
def load_config(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS, *, kind: type[C]) -> C: ...


def load_config(
    name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS, *, kind: type[RunConfig] = RunConfig
) -> RunConfig:
    """The config of a file in ``configs`` (or of a path), validated by its recipe's class. Imports no torch.

    ConfigError names the key, the file and what to do; also for a config of another ``kind``, the class of a recipe.
    """
    resolved = config.resolve(name, overrides, configs)
    recipe = resolved.values["recipe"]
    _check(recipe)
    cfg = config.build(import_module(f"recipes.{recipe}.config").Config, resolved)
    if not isinstance(cfg, kind):
        wanted = kind.__module__.split(".")[1]
        raise ConfigError(f"{name} is a config of the recipe {recipe}: give one of {wanted}")
    return cfg


def _check(name: Any) -> None:
    if not isinstance(name, str) or not (ROOT / "recipes" / name / "recipe.py").is_file():
        names = sorted(path.parent.name for path in (ROOT / "recipes").glob("*/recipe.py"))
        raise ConfigError(f"no recipe {name!r}: there are {', '.join(names)}")
