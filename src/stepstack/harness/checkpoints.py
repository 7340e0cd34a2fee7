"""`stepstack eval --checkpoints`: the curve of a run's checkpoints, on a set that may choose among them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from stepstack.config import ConfigError, RunConfig
from stepstack.core import checkpoint, weights
from stepstack.core.run import Run
from stepstack.core.world import World
from stepstack.harness.command import figure
from stepstack.harness.model import folder_of
from stepstack.harness.suite import Options, evaluate_all


def run(cfg: RunConfig, recipe: ModuleType, tasks: Sequence[str], options: Options) -> int:
    """Evaluate every whole checkpoint of the run on ``tasks`` into runs/<name>/evals/checkpoints/step-<n>, print the
    table and write the run's report anew. The test sets are not for this: what chose a checkpoint cannot judge it.

    ConfigError where the run keeps none.
    """
    world = World(cfg.launch.threads)
    folder = Run.folder(cfg)
    found = [(step, place) for step, place in checkpoint.newest_first(folder / "checkpoints")][::-1]
    found = [(step, place) for step, place in found if checkpoint.problem(place) is None]
    if not found:
        raise ConfigError(f"{folder / 'checkpoints'} holds no whole checkpoint: train with save.every and save.keep")
    engine = recipe.open_engine(cfg, folder_of(str(folder / "model")), world.device)
    table = Table(title=f"{cfg.name}: checkpoints on {', '.join(tasks)}")
    for column in ("step", "task", "metric", "value", "stderr"):
        table.add_column(column)
    for step, place in found:
        values = dict(weights.read(place, role="actor"))
        engine.generator.load(values.items(), version=step)
        model = {"name": f"{cfg.name} step {step}", "sha256": hash_of(values)}
        root = folder / "evals" / "checkpoints" / place.name
        about = {"step": step}
        for _, result in evaluate_all(
            tasks, engine, world, own=recipe.own(cfg), root=root, model=model, options=options, about=about
        ):
            first = result["metrics"][0]
            table.add_row(str(step), result["task"], first["name"], figure(first["value"]), figure(first["stderr"]))
    if world.rank == 0:
        Console().print(table)
        print(f"report: {recipe.write_report(folder)}")
    return 0


def hash_of(weights: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
