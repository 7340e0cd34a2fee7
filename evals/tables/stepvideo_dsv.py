"""Each block of stepvideo-tiny-dsv, over the last steps of the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins


def table(root: Path) -> list[Table]:
    """Each block of stepvideo-tiny-dsv, over the last steps of the runs."""
    files = sorted((root / "evals" / "results").glob("stepvideo-tiny-dsv-seed*.json"))
    if not files:
        return [Table((), (), ["No run has been recorded."])]
    runs = [json.loads(file.read_text()) for file in files]
    names = ("sparsity", "mass", "recall", "pooled_recall")
    rows = [
        (str(i), *(_mean_and_error([block[name] for block in blocks]) for name in names))
        for i, blocks in enumerate(zip(*(run["dsv"]["blocks"] for run in runs), strict=True))
    ]
    stages = ", ".join(f"{run['dsv']['steps']['stage 2']} of {run['dsv']['steps']['all']}" for run in runs)
    head = ("block", "sparsity", "mass", "recall", "recall, pooled")
    results = [result for run in runs for result in run["evals"]["after"]]
    note = f"measured, mean ± stderr of {len(runs)} seeds, last {runs[0]['dsv']['last']} steps; sparse steps: {stages}"
    return [Table(head, rows, [f"{note}; {describe_origins(results)}"])]


def _mean_and_error(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values) / len(values) ** 0.5 if len(values) > 1 else float('nan'):.3f}"
