"""Asynchronous training on two cores, unpaced (`make bench BENCH=stream-cores`), beside its bound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins


def table(root: Path) -> list[Table]:
    """Speed of a trainer with a worker over two data-parallel processes."""
    file = root / "evals" / "results" / "bench-stream-cores.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    return [table_of(json.loads(file.read_text()))]


def table_of(result: Mapping[str, Any]) -> Table:
    found = {(row["algorithm"], row["way"], row["round"]): row for row in result["rows"]}
    rounds = sorted({row["round"] for row in result["rows"]})
    lines = []
    for algorithm in dict.fromkeys(row["algorithm"] for row in result["rows"]):
        one, two, stream = (
            [found[algorithm, way, number] for number in rounds]
            for way in ("one process", "two data-parallel", "trainer and worker")
        )
        ratios = [there["step"] / here["step"] for there, here in zip(two, stream, strict=True)]
        bounds = [row["step"] / 2 / max(row["rollout"], row["step"] - row["rollout"]) for row in one]
        seconds = [f"{fmean(row['step'] for row in rows):.2f}" for rows in (one, two, stream)]
        error = f" ± {stdev(ratios) / len(ratios) ** 0.5:.2f}" if len(ratios) > 1 else ""
        share = f"{fmean(row['rollout'] / row['step'] for row in one):.0%}"
        lines.append((algorithm, *seconds, share, f"{fmean(ratios):.2f}{error}", f"{fmean(bounds):.2f}"))
    head = (
        "orz-tiny by",
        "one process, s a step",
        "two data-parallel",
        "trainer and worker",
        "generation",
        "x two data-parallel",
        "bound",
    )
    note = f"measured, medians of {result['steps']} steps, {len(rounds)} rounds; {describe_origins([result])}"
    return Table(head, lines, [note])
