"""An update of GRPO by the length of its prompts, beside TRL's."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins


def table(root: Path) -> list[Table]:
    """CPU seconds of an update with shared prompts, with rows of their own and by TRL, and their ratios."""
    file = root / "evals" / "results" / "bench-grpo.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    result = json.loads(file.read_text())
    lengths = dict.fromkeys(row["prompt"] for row in result["rows"])
    rows = [_contest(length, [row for row in result["rows"] if row["prompt"] == length]) for length in lengths]
    head = (
        "prompt tokens",
        "shared prompts, CPU-s",
        "rows of their own",
        "TRL",
        "own / shared",
        "TRL / shared",
        "rounds",
    )
    facts = f"{result['rollouts']} rollouts an update, 8 a prompt, {result['parameters'] / 1e6:.1f}M parameters"
    return [Table(head, rows, [f"measured, {facts}; {describe_origins([result])}"])]


def _contest(length: int, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    seconds = (f"{fmean(row[who] for row in rows):.2f}" for who in ("shared", "own", "trl"))
    return str(length), *seconds, *(_ratio(rows, who) for who in ("own", "trl")), str(len(rows))


def _ratio(rows: list[dict[str, Any]], above: str) -> str:
    found = [row[above] / row["shared"] for row in rows]
    error = stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")
    return f"{fmean(found):.2f}x ± {error:.2f}"
