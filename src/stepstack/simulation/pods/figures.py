"""Plots of a study: waste over time and by fault ratio, cross-ToR rates, cost against cluster size, MFU."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GPUS = "GPUs"


def draw(study: Mapping[str, Any]) -> dict[str, Figure]:
    """Map from name to figure, for the parts that the study has."""
    figures: dict[str, Figure] = {}
    makers: dict[str, tuple[str, Callable[[Axes, Any], None]]] = {
        "waste-over-time": ("over_time", _over_time),
        "waste-by-tp": ("waste", _by_tp),
        "waiting": ("waste", _waiting),
        "waste-by-fault-ratio": ("iid", _by_rate),
        "traffic": ("traffic", _traffic),
        "cost": ("cost_by_size", _cost),
        "mfu": ("mfu", _mfu),
    }
    for name, (part, maker) in makers.items():
        if study.get(part):
            figures[name] = _figure(maker, study[part])
    return figures


def encode(figure: Figure, format: str) -> bytes:
    """Figure as bytes. ``format``: svg or png."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=150, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()


def _figure(maker: Callable[[Axes, Any], None], part: Any) -> Figure:
    from matplotlib.figure import Figure  # heavy: only where one is drawn

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    maker(axes, part)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, frameon=False, ncols=2)
    return figure


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)


def _over_time(axes: Axes, part: Mapping[str, Any]) -> None:
    for name, line in part["lines"].items():
        axes.step(part["day"], [100 * value for value in line], where="post", label=name, linewidth=1)
    _label(axes, f"GPU waste over the published trace, TP-{part['tp']}", "day", "wasted GPUs, %")


def _by_tp(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(row["architecture"] for row in rows))
    tps = sorted({row["tp"] for row in rows})
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        percents = {row["tp"]: 100 * row["waste"] for row in rows if row["architecture"] == name}
        at = [i + place * width for i, tp in enumerate(tps) if tp in percents]
        axes.bar(at, list(percents.values()), width, label=name)
    axes.set_xticks([i + 0.4 for i in range(len(tps))], [f"TP-{tp}" for tp in tps])
    _label(axes, "Mean GPU waste over the published trace", "", "wasted GPUs, %")


def _waiting(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    tp = 32 if any(row["tp"] == 32 for row in rows) else rows[0]["tp"]
    for row in rows:
        if row["tp"] == tp:
            sizes = [100 * float(job) for job in row["waiting"]]
            axes.plot(
                sizes, [100 * share for share in row["waiting"].values()], label=row["architecture"], linewidth=1.3
            )
    _label(axes, f"Time in which a job does not fit, TP-{tp}", "job, % of all GPUs", "time waiting for repairs, %")


def _by_rate(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for name in dict.fromkeys(row["architecture"] for row in rows):
        line = [(100 * row["rate"], 100 * row["waste"]) for row in rows if row["architecture"] == name]
        axes.plot(*zip(*line, strict=True), label=name, marker="o", markersize=3, linewidth=1.3)
    axes.set_yscale("symlog", linthresh=1)
    _label(axes, f"Mean GPU waste, independent faults, TP-{rows[0]['tp']}", "faulty nodes, %", "wasted GPUs, %")


def _traffic(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    widest = max(row["dp"] for row in rows)
    for dp in sorted({row["dp"] for row in rows}):
        for method in dict.fromkeys(row["method"] for row in rows):
            if dp == widest or method == "aligned":
                chosen_rows = [
                    row for row in rows if (row["dp"], row["method"]) == (dp, method) and row["cross"] is not None
                ]
                line = [(100 * row["rate"], 100 * row["cross"]) for row in chosen_rows]
                if line:
                    axes.plot(
                        *zip(*line, strict=True), label=f"{method}, DP {dp}", marker="o", markersize=3, linewidth=1.3
                    )
    title = f"DP traffic between ToRs, job of {rows[0]['share']:.0%} of {rows[0]['nodes']} nodes"
    _label(axes, title, "faulty nodes, %", "hops between ToRs, %")


def _cost(axes: Axes, part: Mapping[str, Any]) -> None:
    for name, line in part["lines"].items():
        axes.plot(part["gpus"], line, label=name, linewidth=1.3)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _label(axes, "Interconnect, whole units bought", "GPUs that are of use", "$ per GPU")


def _mfu(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    sizes = [row["gpus"] for row in rows]
    for key, label in (("dgx", "TP-8"), ("best", "best TP up to 128")):
        axes.plot(sizes, [100 * row[key]["mfu"] for row in rows], label=label, marker="o", markersize=3)
    axes.set_xscale("log", base=2)
    _label(axes, "Llama-3.1-405B, global batch 2048, analytic", GPUS, "MFU, %")
