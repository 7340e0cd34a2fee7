"""`stepstack eval --checkpoints`: the curve of a run's checkpoints, on a set that may choose among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from stepstack.config import ConfigError, RunConfig
from stepstack.core import checkpoint, weights
from stepstack.core.types import ProcessGroup
from stepstack.harness.engines.generator import GeneratorEngine
from stepstack.harness.suite import SuiteOptions, evaluate_all
from stepstack.harness.summary import figure
from stepstack.harness.task import Task
from stepstack.terminal import console

POLICIES = ("actor", "policy")  # roles that answer: of RL, and of tuning


def whole(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every whole checkpoint of a run, oldest first. ConfigError where it keeps none."""
    places = [(step, place) for step, place in checkpoint.newest_first(folder / "checkpoints")][::-1]
    places = [(step, place) for step, place in places if checkpoint.problem(place) is None]
    if not places:
        raise ConfigError(f"{folder / 'checkpoints'} holds no whole checkpoint: train with save.every and save.keep")
    return places


def run(
    cfg: RunConfig,
    places: Sequence[tuple[int, Path]],
    engine: GeneratorEngine,
    world: ProcessGroup,
    *,
    recipe_tasks: Sequence[Task],
    tasks: Sequence[str],
    options: SuiteOptions,
) -> None:
    """Evaluate each checkpoint on ``tasks`` into runs/<name>/evals/checkpoints/step-<n>, and print the table. The test
    sets are not for this: what chose a checkpoint cannot judge it."""
    table = Table(title=f"{cfg.name}: checkpoints on {', '.join(tasks)}")
    for column in ("step", "task", "metric", "value", "stderr"):
        table.add_column(column)
    for step, place in places:
        role = next(role for role in POLICIES if (place / role).is_dir())
        values = dict(weights.read(place, role=role))
        engine.generator.load(values.items(), version=step)
        model = {"name": f"{cfg.name} step {step}", "sha256": weights.digest(sorted(values.items()))}
        root = cfg.folder / "evals" / "checkpoints" / place.name
        about = {"step": step}
        for _, result in evaluate_all(
            tasks, engine, world, recipe_tasks=recipe_tasks, root=root, model=model, options=options, about=about
        ):
            first = result["metrics"][0]
            table.add_row(str(step), result["task"], first["name"], figure(first["value"]), figure(first["stderr"]))
    if world.rank == 0:
        console().print(table)
