"""Each recorded run of chat-tiny: what its SFT model answers, and what DPO made of it."""

from __future__ import annotations

import json
from pathlib import Path

from stepstack.report import layout
from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins

FIGURES = ("sums right", "reckons again", "agrees to a right one", "firm at a wrong claim")


def table(root: Path) -> list[Table]:
    """Two rows a seed: after SFT, after DPO."""
    files = sorted((root / "evals" / "results").glob("chat-tiny-seed*.json"))
    if not files:
        return [Table((), (), ["No run has been recorded."])]
    rows, results = [], []
    for file in files:
        run = json.loads(file.read_text())
        seconds = dict(zip(("before", "after"), run["cpu_s_by_stage"], strict=True))
        for when, stage in (("before", "SFT"), ("after", "DPO")):
            found = [layout.find(file.stem, when, "test", name, root) for name in FIGURES]
            results.append(found[0][0])
            figures = (f"{metric['value']:.3f} ± {metric['stderr']:.3f}" for _, metric in found)
            rows.append((str(run["config"]["seed"]), f"after {stage}", *figures, f"{seconds[when]:.0f}"))
    notes = [
        f"measured, n={results[0]['n']} held-out dialogues, one of four kinds each, "
        f"{layout.describe_sampling(results[0])}, ± stderr; {describe_origins(results)}"
    ]
    if differ := layout.differences(results):
        notes.append(f"not comparable: {'; '.join(differ)}")
    return [Table(("seed", "model", *FIGURES, "CPU-s of the stage"), rows, notes)]
