"""The functions by which the command line knows a recipe, and how one is found by its name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

from stepstack import config
from stepstack.config import CONFIGS, ROOT, ConfigError, Resolved, RunConfig
from stepstack.generation.vllm.config import VllmConfig
from stepstack.harness.task import LM_EVAL, menu_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from recipes.chat import recipe as chat
    from recipes.chat.config import Config as ChatConfig
    from recipes.mdocsum import recipe as mdocsum
    from recipes.mdocsum.config import Config as MDocSumConfig
    from recipes.orz import recipe as orz
    from recipes.orz.config import Config as OrzConfig
    from recipes.perception import recipe as perception
    from recipes.perception.config import Config as PerceptionConfig
    from recipes.stepaudio import recipe as stepaudio
    from recipes.stepaudio.config import Config as StepaudioConfig
    from recipes.steplaw import recipe as steplaw
    from recipes.steplaw.config import Config as SteplawConfig
    from recipes.stepvideo import recipe as stepvideo
    from recipes.stepvideo.config import Config as StepvideoConfig
    from recipes.videolora import recipe as videolora
    from recipes.videolora.config import Config as VideoloraConfig
    from stepstack.core.run import Run
    from stepstack.generation.types import Generator, Prompt
    from stepstack.harness.engine import Engine
    from stepstack.harness.task import Task
    from stepstack.report.tokens import ShownRow
    from stepstack.rl.config import PpoConfig

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


class RecipeOfRows(Recipe[C], Protocol[C]):
    """A recipe that learns rows of tokens from data."""

    def show_rows(self, cfg: C, count: int) -> Iterator[ShownRow]:
        """The first rows as they are learned."""
        ...


class RecipeOfRollouts(Recipe[C], Protocol[C]):
    """A recipe whose rollouts can be made by worker processes."""

    def open_sampler(self, cfg: C, folder: Path, device: torch.device) -> tuple[Generator, list[Prompt]]:
        """The sampler of a worker process, and the training prompts."""
        ...


class RecipeOfLayers(Recipe[C], Protocol[C]):
    """A recipe whose model is a chain of layers, or several, that can be cut over processes."""

    def skeleton(self, cfg: C) -> PreTrainedModel:
        """The model of a config, whose weights take no memory."""
        ...


if TYPE_CHECKING:  # the type checker holds every recipe to the protocol
    _chat: RecipeOfRows[ChatConfig] = chat
    _mdocsum: RecipeOfRows[MDocSumConfig] = mdocsum
    _orz: RecipeOfRollouts[OrzConfig] = orz
    _perception: RecipeOfRollouts[PerceptionConfig] = perception
    _stepaudio: Recipe[StepaudioConfig] = stepaudio
    _steplaw: Recipe[SteplawConfig] = steplaw
    _stepvideo: Recipe[StepvideoConfig] = stepvideo
    _videolora: Recipe[VideoloraConfig] = videolora


def load(name: str) -> Recipe[RunConfig]:
    """The module recipes/<name>/recipe.py. ConfigError where there is none."""
    _check(name)
    return cast(Recipe[RunConfig], import_module(f"recipes.{name}.recipe"))


def rows_of(cfg: RunConfig, count: int) -> Iterator[ShownRow] | None:
    """The first rows of a config as they are learned; None where its recipe learns none."""
    recipe = load(cfg.recipe)
    if "show_rows" not in vars(recipe):
        return None
    return cast(RecipeOfRows[RunConfig], recipe).show_rows(cfg, count)


def sampler_of(cfg: PpoConfig, folder: Path, device: torch.device) -> tuple[Generator, dict[int, Prompt]]:
    """The sampler of a worker process of a config, and its training prompts by index. ConfigError where its recipe
    streams no rollouts."""
    recipe = load(cfg.recipe)
    if "open_sampler" not in vars(recipe):
        raise ConfigError(f"recipe {cfg.recipe} streams no rollouts: take one of orz and perception")
    engine = cfg.rollout.generator
    if isinstance(engine, VllmConfig):  # the folder has no weights: those of the trainer come first
        cfg = replace(cfg, rollout=replace(cfg.rollout, generator=replace(engine, load_format="dummy")))
    generator, prompts = cast("RecipeOfRollouts[PpoConfig]", recipe).open_sampler(cfg, folder, device)
    return generator, {prompt.problem.index: prompt for prompt in prompts}


def skeleton_of(cfg: RunConfig) -> PreTrainedModel:
    """The model of a config, whose weights take no memory. ConfigError where its recipe's model has other layers than
    those that pipelines know."""
    recipe = load(cfg.recipe)
    if "skeleton" not in vars(recipe):
        raise ConfigError(f"recipe {cfg.recipe} has no model for pipelines: take one of orz, perception and mdocsum")
    return cast(RecipeOfLayers[RunConfig], recipe).skeleton(cfg)


def names() -> list[str]:
    """Names of the recipes: the folders recipes/<name> with a recipe.py."""
    return sorted(path.parent.name for path in (ROOT / "recipes").glob("*/recipe.py"))


def config_class(name: str) -> type[RunConfig]:
    """The config class of a recipe. Imports no torch. ConfigError where there is no such recipe."""
    _check(name)
    return import_module(f"recipes.{name}.config").Config


def resolve(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> Resolved:
    """The values of a config as its files and ``overrides`` have them, each with its source."""
    return config.resolve(name, overrides, configs, class_of=config_class)


@overload
def load_config(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> RunConfig: ...


@overload
def load_config(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS, *, kind: type[C]) -> C: ...


def load_config(
    name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS, *, kind: type[RunConfig] = RunConfig
) -> RunConfig:
    """The config of a file in ``configs`` (or of a path), validated by its recipe's class. Imports no torch.

    ConfigError names the key, the file and what to do; also where a name in the config is that of no file, and for a
    config of another ``kind``, the class of a recipe.
    """
    resolved = resolve(name, overrides, configs)
    recipe = resolved.values["recipe"]
    cfg = config.build(config_class(recipe), resolved)
    if not isinstance(cfg, kind):
        wanted = kind.__module__.split(".")[1]
        raise ConfigError(f"{name} is a config of the recipe {recipe}: give one of {wanted}")
    _check_evals(cfg, resolved)
    _check_launch(cfg, resolved)
    return cfg


def _check(name: Any) -> None:
    if name not in names():
        raise ConfigError(f"no recipe {name!r}: there are {', '.join(names())}")


def _check_evals(cfg: RunConfig, resolved: Resolved) -> None:
    """ConfigError for an entry of ``evals`` that no task answers to."""
    known = [*cfg.task_names, *menu_of()]
    for entry in cfg.evals:
        foreign = entry.startswith(LM_EVAL) and entry != LM_EVAL
        if entry not in known and not foreign and not (entry.endswith(".py") and Path(entry).is_file()):
            forms = f"{', '.join(known)}, {LM_EVAL}<task>, or the path of a .py file"
            raise ConfigError(_unknown("evals", entry, "no such task", known, forms, resolved))


def _check_launch(cfg: RunConfig, resolved: Resolved) -> None:
    """ConfigError where configs/launch has no such file."""
    known = sorted(path.stem for path in (CONFIGS / "launch").glob("*.yaml"))
    if cfg.launch.file not in known:
        why = f"configs/launch/{cfg.launch.file}.yaml does not exist"
        raise ConfigError(_unknown("launch.file", cfg.launch.file, why, known, ", ".join(known), resolved))


def _unknown(key: str, name: str, why: str, known: Sequence[str], menu: str, resolved: Resolved) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{resolved.sources.get(key, 'default')}: {key} = {name!r}: {why}.{hint} There are: {menu}"
