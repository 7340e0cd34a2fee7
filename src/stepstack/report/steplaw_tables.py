"""Tables of Step Law: the released data's from evals/results/steplaw-released.json, the tiny sweep's. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepstack.report.formats import Cell, Table
from stepstack.report.layout import origins

RELEASED = "steplaw-released.json"
PUBLISHED = {"lr": (1.79, -0.713, 0.307), "batch": (0.58, 0.0, 0.571)}


def released(root: Path) -> list[Table]:
    file = root / "evals" / "results" / RELEASED
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    return released_of(json.loads(file.read_text()))


def released_of(said: Mapping[str, Any]) -> list[Table]:
    """Claims, refits, excess loss by law, and the contest of held-out laws."""
    note = f"measured here: {origins([said])}; reported: arXiv 2503.04715 v7"
    return [_claims(said), _refits(said["refits"]), _excess(said["excess"]), _contest(said["held_out"], note)]


def _claims(said: Mapping[str, Any]) -> Table:
    boot, counts, convex, moe = said["bootstrap"], said["counts"], said["convexity"], said["moe"]
    refit = said["refits"]["near"]
    low, high = refit["lr_interval"][2]
    rows = [
        ("mean of the 1,000 bootstrap fits: lr", formula(PUBLISHED["lr"]), formula(boot["lr"]), "agrees"),
        ("the same: batch", formula(PUBLISHED["batch"]), formula((boot["batch"][0], 0, boot["batch"][1])), "agrees"),
        ("N = layers (4h² + 3hf), rows exact", "-", _of(counts["dense"]), _whole(counts["dense"])),
        ("N of mixtures: all / active, rows exact", "-", f"{_of(counts['moe'])} / {_of(counts['moe_active'])}",
         _whole(counts["moe"], counts["moe_active"])),
        ("refit, exponent of N in lr", "-0.713", f"{refit['lr'][1]:.3f} {_interval(refit['lr_interval'][1])}",
         _inside(-0.713, refit["lr_interval"][1])),
        ("refit, exponent of D in lr", "0.307", f"{refit['lr'][2]:.3f} {_interval((low, high))}", _inside(0.307, (low, high))),
        ("refit, exponent of D in batch", "0.571", f"{refit['batch'][2]:.3f} {_interval(refit['batch_interval'][2])}",
         _inside(0.571, refit["batch_interval"][2])),
        ("mean excess loss of the law, ‰", "0.94", f"{said['excess']['Step Law']['nearest']:.3f}", "agrees"),
        ("surfaces with a minimum, dense / MoE", "convex", f"{_of(convex['dense']['surfaces'])} / {_of(convex['moe']['surfaces'])}",
         _whole(convex["dense"]["surfaces"], convex["moe"]["surfaces"])),
        ("slices with one valley, runs within 5 %, dense / MoE", "convex",
         f"{_of(convex['dense']['slices_near'])} / {_of(convex['moe']['slices_near'])}", _whole(convex["dense"]["slices_near"])),
        ("the same of all runs", "convex", f"{_of(convex['dense']['slices'])} / {_of(convex['moe']['slices'])}",
         _whole(convex["dense"]["slices"])),
        ("MoE, mean excess by all / by active N, ‰", "all", f"{moe['total']['nearest']:.2f} / {moe['active']['nearest']:.2f}", "agrees"),
    ]  # fmt: skip
    notes = [
        f"+0.1 % loss: learning rate x/÷ {said['plateau']['lr']:.3f}, batch x/÷ {said['plateau']['batch']:.3f} (medians of the dense surfaces)"
    ]
    return Table(("claim", "reported", "measured here", ""), rows, notes, "What the released runs say")


def _refits(refits: Mapping[str, Any]) -> Table:
    rows = [
        (name, formula(law["lr"], law["lr_interval"]), formula(law["batch"], law["batch_interval"]))
        for name, law in refits.items()
    ]
    rows.append(("reported", formula(PUBLISHED["lr"]), formula(PUBLISHED["batch"])))
    return Table(
        ("fitted to", "learning rate", "batch, tokens"), rows, ["exponents with 95 % bootstrap intervals"], "Refits"
    )


def _excess(excess: Mapping[str, Any]) -> Table:
    head = ("law", "nearest run", "median", "max", "interpolated", "quadratic", "lr only, best batch", "reported")
    names = ("nearest", "median", "max", "interpolated", "quadratic", "lr_only", "reported")
    rows = [(law, *(f"{found[name]:.2f}" for name in names)) for law, found in excess.items()]
    notes = ["Microsoft's is not evaluated: the units of its N and D are not printed (reported: 9.25)"]
    return Table(head, rows, notes, "Mean excess loss over the 17 dense grids, ‰")


def _contest(held_out: Mapping[str, Any], note: str) -> Table:
    columns = ("dense", "dense_to_moe", "joint_dense", "joint_moe")
    step = held_out["step"]
    rows: list[Sequence[str | Cell]] = []
    for one in held_out["families"]:
        rows.append([one["family"], *(_judged(one[column]) for column in columns)])
    rows.append(["the best of these, chosen without the grid", _judged(held_out["nested"]), "-", "-", "-"])
    theirs = [step["dense"], step["moe"], step["dense"], step["moe"]]
    rows.append(["Step Law, as published", *(f"{one['nearest']:.2f}; {one['interpolated']:.2f}" for one in theirs)])
    head = (
        "law, fitted without the grid",
        "dense grids",
        "MoE, fitted to dense",
        "dense, fitted to both",
        "MoE, fitted to both",
    )
    notes = [
        "nearest run; interpolated. Bold: the 95 % interval of the difference from Step Law (interpolated, bootstrap over "
        "grids) lies below 0",
        note,
    ]
    return Table(head, rows, notes, "Mean excess loss of laws on grids that they never saw, ‰")


def _judged(one: Mapping[str, Any]) -> Cell:
    return Cell(f"{one['nearest']:.2f}; {one['interpolated']:.2f}", bold=one["interpolated_gap"][2] < 0)


def formula(terms: Sequence[float], intervals: Sequence[Sequence[float]] | None = None) -> str:
    """1.79 N^-0.713 D^0.307."""
    text = f"{terms[0]:.4g}"
    for place, name in ((1, "N"), (2, "D")):
        if terms[place]:
            text += f" {name}^{terms[place]:.3f}" + (f" {_interval(intervals[place])}" if intervals else "")
    return text


def _of(pair: Sequence[int]) -> str:
    return f"{pair[0]} of {pair[1]}"


def _interval(pair: Sequence[float]) -> str:
    return f"[{pair[0]:.3f}, {pair[1]:.3f}]"


def _whole(*pairs: Sequence[int]) -> str:
    return "agrees" if all(a == b for a, b in pairs) else "does not hold everywhere"


def _inside(value: float, interval: Sequence[float]) -> str:
    return "agrees" if interval[0] <= value <= interval[1] else "does not agree: the interval excludes it"
