"""Each recorded run of orz-tiny before and after training, which a mean over seeds does not show."""

from __future__ import annotations

import json
from pathlib import Path

from stepstack.report import layout
from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins

SUMS, ACCURACY = "orz_tiny", "avg@1"  # the task and metric of the table of single runs


def table(root: Path) -> list[Table]:
    """Each recorded run before and after training, which a mean over seeds does not show."""
    files = sorted((root / "evals" / "results").glob("orz-tiny-seed*.json"))
    if not files:
        return [Table((), (), ["No run has been recorded."])]
    rows, results = [], []
    for file in files:
        run = json.loads(file.read_text())
        figures = [layout.find(file.stem, when, SUMS, ACCURACY, root) for when in ("before", "after")]
        results += [result for result, _ in figures]
        rows.append(
            (
                str(run["config"]["seed"]),
                *(f"{metric['value']:.3f} ± {metric['stderr']:.3f}" for _, metric in figures),
                *(f"{result['length']:.1f}" for result, _ in figures),
                " + ".join(f"{seconds:.0f}" for seconds in run["cpu_s_by_stage"]),
            )
        )
    head = ("seed", "accuracy before", "after", "response tokens before", "after", "CPU-s (SFT + PPO)")
    how = f"n={results[0]['n']} held-out problems, {ACCURACY}, {layout.describe_sampling(results[0])}, ± stderr"
    notes = [f"measured, {how}; {describe_origins(results)}"]
    if differ := layout.differences(results):
        notes.append(f"not comparable: {'; '.join(differ)}")
    return [Table(head, rows, notes)]
