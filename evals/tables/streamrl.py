"""Tables of StreamRL: evals/results/streamrl.json (`stepstack sim rollout --published --record`) beside the paper's.

Simulated and reported share a row, in columns of their own, because the question is how far apart they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepstack.report.formats import Table
from stepstack.report.layout import Publication, describe_origins, validate

NEAR = 0.10  # of figure 9's ratios


def reproduced(root: Path) -> list[Table]:
    """Figures 9 and 10 with a verdict, figure 12 and table 3 by their order, figure 8 as it is."""
    file = root / "evals" / "results" / "streamrl.json"
    if not file.is_file():
        return [Table((), (), ["Not simulated yet."])]
    found = json.loads(file.read_text())
    published, source = _published(root)
    rows: list[list[str]] = []
    for model, ratios in found["dispatch"].items():
        for how, value in ratios.items():
            reported = published[f"figure 9, {model}"][how]
            verdict = f"within {NEAR:g}" if abs(value - reported) <= NEAR else "differs"
            rows.append([f"fig. 9: generation over Random-FIFO, {model}, {how}", _two(value), _two(reported), verdict])
    for model, shares in found["allocation"].items():
        theirs = published[f"figure 10, {model}"]
        same = all(shares[key] == theirs[key] for key in ("generation", "training"))
        pairs = [f"{one['generation']:g}:{one['training']:g}" for one in (shares, theirs)]
        rows.append([f"fig. 10: devices, {model}", *pairs, "equal" if same else "differs"])
    for longest, rates in found["per_price"].items():
        reported = published[f"figure 12, {longest}"]["ratio"]
        verdict = "same order" if (rates["ratio"] > 1) == (reported > 1) else "other order"
        what = f"fig. 12: throughput over cost, two datacentres over one, {longest}"
        rows.append([what, _two(rates["ratio"]), _two(reported), verdict])
    rates = found["throughput"]
    ladder = {name: value / rates["colocated"] for name, value in rates.items()}
    verdict = "same order" if sorted(ladder, key=ladder.__getitem__) == list(published["table 3"]) else "other order"
    for name, value in ladder.items():
        rows.append([f"table 3: throughput, {name}", _two(value), _two(published["table 3"][name]), verdict])
    for name, value in published["figure 8, 7B 20K"].items():
        rows.append(
            [f"fig. 8: rows a second, 7B, 20K, 32 GPUs, {name}", _two(rates[name]), _two(value), "by our times"]
        )
    notes = [
        f"simulated, means of {found['seeds']} draws; {describe_origins([found])}",
        f"reported, not measured by us: {source}",
    ]
    return [Table(["", "simulated", "reported", "verdict"], rows, notes)]


def _published(root: Path) -> tuple[dict[str, Mapping[str, float]], str]:
    """Values by key, and where they were published."""
    file = root / "evals" / "reported" / "streamrl.json"
    publication: Publication = validate(Publication, json.loads(file.read_text()), str(file.relative_to(root)))
    return {row.key: row.values for row in publication.rows}, "; ".join(publication.sources.values())


def _two(value: Any) -> str:
    return f"{value:.2f}"
