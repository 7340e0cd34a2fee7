"""Headline of a run: a few figures for the top of its report and its line in the index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepstack.harness.training.evaluated import Columns, first_task
from stepstack.harness.training.history import RunHistory

Figure = tuple[str, str]  # a value as it is read, and what it is
SELECTED = "eval/accuracy"  # key of the figure that a recipe watches


def figures(history: RunHistory, columns: Columns) -> list[Figure]:
    """The score before and after, how long answers are, and what it took."""
    found = [*score(history, columns), *_lengths(history, columns)]
    if history.tokens:
        found.append((_large(history.tokens), "tokens in training"))
    if history.stages:
        found.append((f"{history.cpu_seconds:,.0f} CPU-s", "in all steps, of process 0"))
        found.append((_time(history.seconds), "wall time of all steps"))
    return found


def score(history: RunHistory, columns: Columns) -> list[Figure]:
    """The first figure of the first task before and after training; of a run that has no such evaluation yet, what it
    watches, or the loss."""
    task = first_task(columns, history.record["config"]["evals"])
    if task is not None and "after" in columns:
        metrics = [column[task][1]["metrics"][0] for column in columns.values()]
        error = "" if metrics[-1]["stderr"] is None else f" ± {metrics[-1]['stderr']:.3f}"
        ways = " → ".join(_number(metric["value"]) for metric in metrics)
        return [(ways, f"{metrics[-1]['name']}{error} on {task}, n={metrics[-1]['n']}")]
    for key, what in ((SELECTED, "watched held-out score"), ("loss", "loss")):
        for stage in reversed(history.stages):
            if values := [row[key] for row in stage.rows if key in row]:
                return [(f"{_number(values[0])} → {_number(values[-1])}", f"{what} in {stage.name}")]
    return []


def _lengths(history: RunHistory, columns: Columns) -> list[Figure]:
    task = first_task(columns, history.record["config"]["evals"])
    if task is None:
        return []
    lengths: list[Mapping[str, Any]] = [column[task][1] for column in columns.values()]
    if any(result["length"] is None for result in lengths):
        return []
    return [(" → ".join(f"{result['length']:.1f}" for result in lengths), f"response tokens on {task}")]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def _large(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
