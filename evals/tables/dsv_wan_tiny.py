"""Dense and DSV training of the same seeds (examples/dsv_wan.py)."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev

from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins


def table(root: Path) -> list[Table]:
    """Dense and DSV training of the same seeds (examples/dsv_wan.py)."""
    file = root / "evals" / "results" / "dsv-wan-tiny.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    result = json.loads(file.read_text())
    pairs = list(zip(result["dense"], result["sparse"], strict=True))
    names = ("sparsity", "mass", "recall", "pooled_recall")
    rows = [
        (
            str(dense["seed"]),
            f"{dense['held_out']:.4f}",
            f"{sparse['held_out']:.4f}",
            f"{result['steps'] - sparse['dsv']['dense_steps']} of {result['steps']}",
            *(f"{sparse['dsv'][name]:.3f}" for name in names),
        )
        for dense, sparse in pairs
    ]
    columns = [[sparse["dsv"][name] for _, sparse in pairs] for name in names]
    losses = [[one["held_out"] for one in run] for run in (result["dense"], result["sparse"])]
    error = [f"{fmean(c):.4f} ± {stdev(c) / len(c) ** 0.5:.4f}" for c in losses]
    rows.append(("mean ± stderr", *error, "", *(f"{fmean(column):.3f}" for column in columns)))
    head = ("seed", "held-out loss, dense", "DSV", "sparse steps", "sparsity", "mass", "recall", "recall, pooled")
    gaps = [sparse["held_out"] - dense["held_out"] for dense, sparse in pairs]
    gap = f"{fmean(gaps):.5f} ± {stdev(gaps) / len(gaps) ** 0.5:.5f}"
    note = f"measured; DSV less dense of the same seed: {gap} (mean ± stderr); {describe_origins([result])}"
    return [Table(head, rows, [note])]
