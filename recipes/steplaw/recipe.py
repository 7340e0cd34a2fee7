"""Step Law (arXiv 2503.04715): a sweep of language models over learning rate and batch size, and the law it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from recipes.steplaw.data import Corpus, prepare
from recipes.steplaw.outcome import finish, write_report
from recipes.steplaw.sweep import Cell, Point, measure
from recipes.steplaw.text import Grammar
from stepstack.config import ConfigError, Positive, RunConfig, Scale
from stepstack.core.optim import AdamW, Schedule
from stepstack.core.run import Run
from stepstack.harness.engine import Engine
from stepstack.harness.task import Task
from stepstack.rl.batch import Layout

__all__ = ["Config", "describe", "open_engine", "own", "prepare", "train", "write_report"]

Some = Field(min_length=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(RunConfig):
    """Every cell is trained at every ``lr`` and every ``batch`` (sequences).

    ``part``: (k, n) trains the k-th of n shares of the points, from 0, so that several machines share a sweep.
    ``window``: what fraction above its best loss a cell's runs may lie to shape its surface.
    """

    evals: tuple[str, ...] = ()
    cells: Annotated[tuple[Cell, ...], Some]
    lr: Annotated[tuple[float, ...], Some]
    batch: Annotated[tuple[Positive, ...], Some]
    sequence: Positive
    data: Annotated[Grammar | Corpus, Field(discriminator="type")]
    optim: AdamW = AdamW(weight_decay=0.1, schedule=Schedule(kind="cosine", warmup=2000))
    final_lr: float = 1e-5
    clip: float = 1.0
    spread: float = 0.02  # standard deviation of the weights at the start
    held_out_rows: Positive = 256
    part: tuple[int, int] = (0, 1)
    layout: Layout = Layout()
    window: float = 0.02

    def __post_init__(self) -> None:
        for point in self.points:
            if point.batch < self.launch.processes:
                raise ValueError(f"batch={point.batch} sequences are fewer than the {self.launch.processes} processes")
            if point.steps < 2:
                raise ValueError(
                    f"batch={point.batch} sequences of {self.sequence} tokens leave a cell of {point.cell.tokens} "
                    f"tokens {point.steps} updates: give it more tokens"
                )
        if not 0 <= self.part[0] < self.part[1]:
            raise ValueError(f"part={list(self.part)}: must be [k, n] with k from 0 to n - 1")

    @property
    def points(self) -> list[Point]:
        """In the order in which they are trained, this part's alone."""
        made = [Point(c, lr, b, self.sequence) for c in self.cells for b in c.batch or self.batch for lr in self.lr]
        return made[self.part[0] :: self.part[1]]

    @property
    def scale(self) -> Scale:
        """Of the last cell."""
        return Scale(self.cells[-1].params, self.cells[-1].tokens)


def train(run: Run[Config]) -> None:
    """A step is a point of the sweep."""
    points = run.config.points
    for number in run.steps(len(points)):
        found = measure(run, points[number])
        run.log(loss=found["loss"], lr=points[number].lr, batch=points[number].batch, params=points[number].cell.params)
    finish(run)
    run.finish()


def own(cfg: Config) -> list[Task]:
    """A sweep is judged by losses, not by answers."""
    return []


def open_engine(cfg: Config, folder: Path, device: torch.device) -> Engine:
    """Refused: no point of a sweep is kept, and text of random words has no tasks."""
    raise ConfigError(f"recipe steplaw keeps no model to evaluate; its losses are in {Run.folder(cfg) / 'report.html'}")


def describe(cfg: Config) -> dict[str, Any]:
    """What a run of this config would do, for ``--dry-run``."""
    points = cfg.points
    flops = sum(6.0 * point.cell.params * point.cell.tokens for point in points)
    facts: dict[str, Any] = {
        "points": f"{len(points)} in {len(cfg.cells)} cells, share {cfg.part[0]} of {cfg.part[1]}",
        "tokens in all": f"{sum(point.cell.tokens for point in points):.4g}",
        "FLOPs in all": f"{flops:.3g} (6 x N x D)",
    }
    for cell in cfg.cells:
        said = f"hidden {cell.hidden}, {cell.layers} layers" + (", held out" if cell.held_out else "")
        facts[f"cell N={cell.params} D={cell.tokens}"] = said
    return facts | {"processes": cfg.launch.processes, "folder": Run.folder(cfg)}
