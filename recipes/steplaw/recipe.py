"""Step Law (arXiv 2503.04715): a sweep of language models over learning rate and batch size, and the fitted law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recipes.steplaw.config import Config
from recipes.steplaw.data import prepare
from recipes.steplaw.model import measure
from recipes.steplaw.report import finish, keep_report, write_report
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.harness.engine import Engine
from stepstack.harness.task import Task

__all__ = ["Config", "describe", "open_engine", "prepare", "tasks", "train", "write_report"]


def train(run: Run[Config]) -> None:
    """Train every point of the sweep, one a step."""
    keep_report(run)
    points = run.config.points
    for number in run.steps(len(points)):
        result = measure(run, points[number])
        run.log(
            loss=result["loss"], lr=points[number].lr, batch=points[number].batch, params=points[number].cell.params
        )
    finish(run)
    run.finish()


def tasks(cfg: Config) -> list[Task]:
    """No tasks, because a sweep is judged by losses, not by answers."""
    return []


def open_engine(cfg: Config, folder: Path, device: torch.device) -> Engine:
    """Raise ConfigError, because no point of a sweep is kept, and text of random words has no tasks."""
    raise ConfigError(f"recipe steplaw keeps no model to evaluate; read its losses in {cfg.folder / 'report.html'}")


def describe(cfg: Config) -> dict[str, Any]:
    """Facts of a run of this config, for ``--dry-run``."""
    points = cfg.points
    flops = sum(6.0 * point.cell.params * point.cell.tokens for point in points)
    facts: dict[str, Any] = {
        "points": f"{len(points)} in {len(cfg.cells)} cells, share {cfg.part[0]} of {cfg.part[1]}",
        "tokens in all": f"{sum(point.cell.tokens for point in points):.4g}",
        "FLOPs in all": f"{flops:.3g} (6 x N x D)",
    }
    for cell in cfg.cells:
        shape = f"hidden {cell.hidden}, {cell.layers} layers" + (", held out" if cell.held_out else "")
        facts[f"cell N={cell.params} D={cell.tokens}"] = shape
    return facts | {"processes": cfg.launch.processes, "folder": cfg.folder}
