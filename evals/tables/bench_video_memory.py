"""Planned and measured costs of a tiny video DiT."""

from __future__ import annotations

import json
from pathlib import Path

from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins


def table(root: Path) -> list[Table]:
    """Planned and measured costs of a tiny video DiT."""
    file = root / "evals" / "results" / "bench-video-memory.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    result = json.loads(file.read_text())
    rows = [
        (row["what"], f"{row['planned']:.4g}", f"{row['measured']:.4g}", f"{row['ratio']:.3f}")
        for row in result["rows"]
    ]
    head = (f"{result['batch']} videos, {result['tokens']} tokens each", "planned", "measured", "measured / planned")
    return [Table(head, rows, [f"measured; {describe_origins([result])}"])]
