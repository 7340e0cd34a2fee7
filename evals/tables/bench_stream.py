"""Schedules of StreamRL in real time, paced (`make bench BENCH=stream`), beside their simulation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stepstack.generation.service.pace import MOST_LATE
from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins

GOALS = {"stream, groups": 1.10, "async": 1.30}  # times colocated
Rows = Sequence[Mapping[str, Any]]


def schedules(root: Path) -> list[Table]:
    """Schedules by their seconds and their speed over colocated, and what a throttled link costs them."""
    return [_read(root, 0)]


def dispatch(root: Path) -> list[Table]:
    """Orders of units by the seconds of generation."""
    return [_read(root, 1)]


def _read(root: Path, which: int) -> Table:
    file = root / "evals" / "results" / "bench-stream.json"
    if not file.is_file():
        return Table((), (), ["Not measured yet."])
    return tables_of(json.loads(file.read_text()))[which]


def tables_of(result: Mapping[str, Any]) -> list[Table]:
    """Both tables of a result."""
    origin = f"paced, {result['late']:.1%} of the deadlines late; {describe_origins([result])}"
    if result["late"] > MOST_LATE:
        origin = f"VOID, the machine was too busy: more than {MOST_LATE:.0%} of the deadlines were late. {origin}"
    return [_schedules(result, origin), _dispatch(result["dispatch"], origin)]


def _schedules(result: Mapping[str, Any], origin: str) -> Table:
    rows, link = result["schedules"], result["link"]
    base = _by_seed(rows, "colocated")
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = _by_seed(rows, name)
        seconds = [row["paced"] / result["iterations"] for row in own.values()]
        ratios = [base[seed]["paced"] / row["paced"] for seed, row in own.items()]
        expected = [base[seed]["simulated"] / row["simulated"] for seed, row in own.items()]
        loss = "-"
        if throttled := _by_seed(link, name):
            loss = f"{fmean(row['paced'] / own[seed]['paced'] - 1 for seed, row in throttled.items()):+.1%}"
            loss += f" ({fmean(row['simulated'] / own[seed]['simulated'] - 1 for seed, row in throttled.items()):+.1%})"
        goal = f"{GOALS[name]:.2f}" if name in GOALS else "-"
        lines.append((name, f"{fmean(seconds):.2f}", _mean(ratios), f"{fmean(expected):.2f}", _off(own), loss, goal))
    head = (
        "schedule, paced",
        "s an iteration",
        "x colocated",
        "simulated",
        "seconds over simulated",
        f"a link of {result['link_seconds']:g} s (simulated)",
        "goal",
    )
    facts = (
        f"{result['generation']} + {result['training']} devices, {result['iterations']} iterations of {result['rows']} "
        f"rows, {len(base)} draws of lengths"
    )
    return Table(head, lines, [f"{facts}; {origin}"])


def _dispatch(rows: Rows, origin: str) -> Table:
    base = _by_seed(rows, "random")
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = _by_seed(rows, name)
        ratios = [row["paced"] / base[seed]["paced"] for seed, row in own.items()]
        expected = fmean(row["simulated"] / base[seed]["simulated"] for seed, row in own.items())
        seconds = f"{fmean(row['paced'] for row in own.values()):.2f}"
        lines.append((name, seconds, _mean(ratios), f"{expected:.2f}", _off(own)))
    bound = [row["bound"] for row in base.values()]
    least = fmean(row["bound"] / row["paced"] for row in base.values())
    what = "bound: the longest row alone, or all work evenly spread"
    lines.append((what, f"{fmean(bound):.2f}", f"{least:.2f}", "-", "-"))
    return Table(("units by, paced", "s", "x random", "simulated", "seconds over simulated"), lines, [origin])


def _by_seed(rows: Rows, name: str) -> dict[int, Mapping[str, Any]]:
    return {row["seed"]: row for row in rows if row["name"] == name}


def _off(rows: Mapping[int, Mapping[str, Any]]) -> str:
    return f"{fmean(row['paced'] / row['simulated'] - 1 for row in rows.values()):+.1%}"


def _mean(values: Sequence[float]) -> str:
    error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{error}"
