"""Tables of Step Law: claims, refits, excess loss, and the cells of a sweep. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepstack.report.formats import Table, TableCell
from stepstack.report.layout import describe_origins

AGREES, DIFFERS = "agrees", "does not agree"


PUBLISHED = {"lr": (1.79, -0.713, 0.307), "batch": (0.58, 0.0, 0.571)}


def released_tables(result: Mapping[str, Any]) -> list[Table]:
    """Claims, refits, excess loss by law, and the contest of held-out laws."""
    note = f"measured here: {describe_origins([result])}; reported: arXiv 2503.04715 v7"
    return [_claims(result), _refits(result["refits"]), _excess(result["excess"]), _contest(result["held_out"], note)]


def sweep_tables(summary: Mapping[str, Any], note: str = "") -> list[Table]:
    """Cells, the laws fitted to them, and those laws on the held-out cells."""
    rows = [_cell(one, "") for one in summary["grids"]] + [_cell(one, "held out") for one in summary["held_out"]]
    head = (
        "cell",
        "runs",
        "best run: lr",
        "batch",
        "loss",
        "surface: lr",
        "batch",
        "convex",
        "+0.1 %: lr x/÷",
        "batch x/÷",
        "",
    )
    fitted = [(k, formula(v["lr"]), formula(v["batch"])) for k, v in summary["laws"].items() if "lr" in v]
    fitted += [(k, "-", v["why"]) for k, v in summary["laws"].items() if "why" in v]
    tables = [
        Table(head, rows, [], "Cells of the sweep"),
        Table(("fitted to", "learning rate", "batch, tokens"), fitted),
    ]
    return [*tables, checks_table(summary["checks"], [note] if note else [])]


def checks_table(checks: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> Table:
    rows = []
    for one in checks:
        row = [one["cell"], one["law"], f"{one['lr']:.3g}", f"{one['batch']:,.0f}"]
        row += [f"{1e3 * one[name]:.2f}" for name in ("nearest", "interpolated")]
        row += [f"{one[name]:.2f}" if name in one else "-" for name in ("lr_factor", "batch_factor")]
        rows.append(row)
    head = (
        "held-out cell",
        "law",
        "lr",
        "batch",
        "excess at the nearest run, ‰",
        "interpolated",
        "lr / its optimum",
        "batch / its",
    )
    return Table(head, rows, notes, "Laws on cells that they never saw")


def _cell(one: Mapping[str, Any], note: str) -> list[str]:
    best, surface = one["best"], one["surface"]
    row = [f"N={one['params']:.4g} D={one['tokens']:.4g}", str(one["runs"])]
    row += [f"{best['lr']:.3g}", f"{best['batch']:,.0f}", f"{one['loss']:.4f}"]
    if "lr" not in surface:
        return [*row, "-", "-", "no", "-", "-", note]
    flat = [f"{factor:.2f}" for factor in surface["plateau"]]
    return [*row, f"{surface['lr']:.3g}", f"{surface['batch']:,.0f}", "yes", *flat, note]


def _claims(result: Mapping[str, Any]) -> Table:
    boot, counts, convex, moe = result["bootstrap"], result["counts"], result["convexity"], result["moe"]
    refit, mean = result["refits"]["near"], result["excess"]["Step Law"]
    dense, mixed = convex["dense"], convex["moe"]
    law, lr, batch = PUBLISHED, boot["lr"], (boot["batch"][0], 0.0, boot["batch"][1])
    rows = [
        ("mean of 1,000 bootstrap fits, lr", formula(law["lr"]), formula(lr), _near(law["lr"], lr)),
        ("the same, batch", formula(law["batch"]), formula(batch), _near(law["batch"], batch)),
        ("N = layers (4h² + 3hf), rows exact", "all", _of(counts["dense"]), _whole(counts["dense"])),
        _two("MoE by all / active N, rows exact", "all", counts["moe"], counts["moe_active"]),
        _exponent("exponent of N in lr, refit", -0.713, refit["lr"][1], refit["lr_interval"][1]),
        _exponent("exponent of D in lr, refit", 0.307, refit["lr"][2], refit["lr_interval"][2]),
        _exponent("exponent of D in batch, refit", 0.571, refit["batch"][2], refit["batch_interval"][2]),
        ("excess loss of the law, ‰", "0.94", f"{mean['nearest']:.3f}", _near((0.94,), (mean["nearest"],))),
        _two("surfaces with a minimum, dense / MoE", "convex", dense["surfaces"], mixed["surfaces"]),
        _two("slices with one valley, within 5 %, dense / MoE", "convex", dense["slices_near"], mixed["slices_near"]),
        _two("the same, all runs, dense / MoE", "convex", dense["slices"], mixed["slices"]),
        (
            "excess loss on MoE by all / active N, ‰",
            "all is better",
            f"{moe['total']['nearest']:.2f} / {moe['active']['nearest']:.2f}",
            AGREES if moe["total"]["nearest"] < moe["active"]["nearest"] else DIFFERS,
        ),
    ]
    flat = result["plateau"]
    note = f"+0.1 % loss: learning rate x/÷ {flat['lr']:.3f}, batch x/÷ {flat['batch']:.3f} (medians of dense surfaces)"
    return Table(("claim", "reported", "measured here", ""), rows, [note], "What the released runs say")


def _two(claim: str, reported: str, first: Sequence[int], second: Sequence[int]) -> tuple[str, ...]:
    return claim, reported, f"{_of(first)} / {_of(second)}", _whole(first, second)


def _exponent(claim: str, reported: float, measured: float, interval: Sequence[float]) -> tuple[str, ...]:
    agrees = interval[0] <= reported <= interval[1]
    return claim, str(reported), f"{measured:.3f} {_interval(interval)}", AGREES if agrees else DIFFERS


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
    rows = [(law, *(f"{figures[name]:.2f}" for name in names)) for law, figures in excess.items()]
    notes = ["Microsoft's is not evaluated: the units of its N and D are not printed (reported: 9.25)"]
    return Table(head, rows, notes, "Mean excess loss over the 17 dense grids, ‰")


def _contest(held_out: Mapping[str, Any], note: str) -> Table:
    columns = ("dense", "dense_to_moe", "joint_dense", "joint_moe")
    step = held_out["step"]
    rows: list[Sequence[str | TableCell]] = []
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
        "nearest run; interpolated. Bold: the 95 % interval of the difference from Step Law (interpolated, bootstrap "
        "over grids) lies below 0",
        note,
    ]
    return Table(head, rows, notes, "Mean excess loss of laws on grids that they never saw, ‰")


def _judged(one: Mapping[str, Any]) -> TableCell:
    return TableCell(f"{one['nearest']:.2f}; {one['interpolated']:.2f}", bold=one["interpolated_gap"][2] < 0)


def formula(terms: Sequence[float], intervals: Sequence[Sequence[float]] | None = None) -> str:
    """Power law as a text, such as 1.79 N^-0.713 D^0.307."""
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
    return AGREES if all(a == b for a, b in pairs) else "not everywhere"


def _near(reported: Sequence[float], measured: Sequence[float]) -> str:
    """Verdict at a tolerance of 2 %, since the paper prints two or three digits."""
    return AGREES if all(abs(a - b) <= 0.02 * abs(a) for a, b in zip(reported, measured, strict=True)) else DIFFERS
