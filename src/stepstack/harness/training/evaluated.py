"""Finished evaluations of a run, as its folder has them: before and after training, and of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepstack.harness.answers import Sample, by_question, read
from stepstack.harness.store import RESULT_KEYS
from stepstack.report import jsonl

WHEN = ("before", "after")

Result = tuple[Path, dict[str, Any]]
Columns = Mapping[str, Mapping[str, Result]]  # moment -> task -> (folder, result)


def columns_of(folder: Path) -> dict[str, dict[str, Result]]:
    """The moments at which a run's tasks were evaluated."""
    return {when: loaded for when in WHEN if (loaded := results(folder / "evals" / when))}


def results(place: Path) -> dict[str, Result]:
    """Finished evaluations under a folder: task -> (folder, result), in order of the task's name."""
    loaded = [(file.parent, jsonl.read_json(file, *RESULT_KEYS)) for file in sorted(place.glob("*/result.json"))]
    return {result["task"]: (folder, result) for folder, result in loaded}


def outcome_rows(*columns: Mapping[str, Result]) -> list[tuple[str, ...]]:
    """Per task that all have: its first metric, response length and share of truncated responses, a column a moment."""
    rows = []
    for task in common(*columns):
        by_task = [column[task][1] for column in columns]
        rows += [
            (task, by_task[0]["metrics"][0]["name"], *(_figure(r["metrics"][0]) for r in by_task)),
            ("", "response tokens", *("-" if r["length"] is None else f"{r['length']:.1f}" for r in by_task)),
            ("", "truncated", *(f"{r['truncated'] / r['samples']:.3f}" for r in by_task)),
        ]
    return rows


def side_by_side(*columns: Mapping[str, Result]) -> list[tuple[Sample, ...]]:
    """The first sample of each question of the first task that all have, at each moment."""
    tasks = common(*columns)
    return list(zip(*(_first_samples(column[tasks[0]][0]) for column in columns), strict=True)) if tasks else []


def common(*columns: Mapping[str, Result]) -> list[str]:
    """Tasks that were evaluated at every moment: a run may go on with other ``evals`` than it began with."""
    return [task for task in columns[0] if all(task in column for column in columns)]


def checkpoint_rows(folder: Path) -> list[dict[str, float]]:
    """Step and first figure of each task, by "task metric", of checkpoints scored by `stepstack eval --checkpoints`."""
    rows = []
    for place in sorted(folder.glob("evals/checkpoints/step-*")):
        row = {}
        for _, result in results(place).values():
            first = result["metrics"][0]
            row["step"] = float(result["step"])
            if first["value"] is not None:
                row[f"{result['task']} {first['name']}"] = first["value"]
        if row:
            rows.append(row)
    return rows


def first_task(columns: Columns, evals: Sequence[str]) -> str | None:
    """The task that a run is judged by: the first of its ``evals`` that was evaluated at every moment, else the first
    by name."""
    tasks = common(*columns.values()) if columns else []
    return next((task for task in evals if task in tasks), tasks[0] if tasks else None)


def _first_samples(folder: Path) -> list[Sample]:
    return [question[0] for question in by_question(read(folder / "samples.jsonl"))]


def _figure(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "-"
    return f"{metric['value']:.3f}" + ("" if metric["stderr"] is None else f" ± {metric['stderr']:.3f}")
