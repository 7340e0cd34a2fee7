"""SFT and DPO beside TRL's trainers."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins

UNITS = {"SFT, text": "tokens/s", "DPO, text": "pairs/s", "DPO, two pictures": "pairs/s"}


def table(root: Path) -> list[Table]:
    """Speeds of a contest, and their ratio in the same run."""
    file = root / "evals" / "results" / "bench-tune.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    result = json.loads(file.read_text())
    rows = [_contest(name, unit, [r for r in result["rows"] if r["contest"] == name]) for name, unit in UNITS.items()]
    head = ("CPU, one thread", "", "stepstack", "TRL 1.16", "ratio", "rounds")
    facts = f"batch {result['batch']}, {result['steps']} updates a round, {result['parameters'] / 1e6:.1f}M parameters"
    return [Table(head, rows, [f"measured, {facts}; {describe_origins([result])}"])]


def _contest(name: str, unit: str, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    ratios = [row["ours"] / row["trl"] for row in rows]
    error = stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    ours, theirs = (fmean(row[who] for row in rows) for who in ("ours", "trl"))
    return name, unit, f"{ours:.4g}", f"{theirs:.4g}", f"{fmean(ratios):.2f}x ± {error:.2f}", str(len(rows))
