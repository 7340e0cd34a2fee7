"""Study of `stepstack sim pods`: all measurements as one record, its tables and its page."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepstack.planning.pods.architectures import ARCHITECTURES
from stepstack.report import jsonl
from stepstack.report.html import Report
from stepstack.report.provenance import describe, provenance
from stepstack.simulation.pods import costs, figures, mfu, traffic, waste
from stepstack.simulation.pods import trace as traces

PARTS = ("waste", "faults", "traffic", "cost", "mfu")
JOBS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.98)
SIZES = tuple(2**i for i in range(6, 18))  # GPUs
SHAPES = ((16, 2, 2), (20, 2, 2), (24, 2, 2), (24, 4, 2))  # nodes, nodes a ToR, nodes a group: solved exactly
OVER_TIME = ("InfinitePOD K=2", "InfinitePOD K=3", "NVL-72", "NVL-576", "TPUv4")
Progress = Callable[[str, int], Callable[[], None]]  # (what, units) -> advance by one


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings of the study.

    ``nodes`` and ``tor_nodes``: nodes of 4 GPUs in the waste and in the traffic study. The latter's job takes ``share``
    of them. ``draws``: fault states at each ratio. ``tor_draws`` and ``gap_draws``: placements at each ratio.
    """

    trace: Path | None = None
    nodes: int = 720
    tps: tuple[int, ...] = (8, 16, 32, 64)
    shuffles: int = 5
    rates: tuple[float, ...] = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1)
    draws: int = 1000
    hops: int = 2
    tor_nodes: int = 2048
    per_tor: int = 8
    tor_tp: int = 32
    dps: tuple[int, ...] = (2, 4, 8)
    share: float = 0.85
    tor_draws: int = 2
    gap_draws: int = 20


def run(parts: Sequence[str], settings: Settings, progress: Progress) -> dict[str, Any]:
    """Record of the requested parts. ValueError for an unknown part, or waste without a trace."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    makers: dict[str, Callable[[Settings, Progress], dict[str, Any]]] = {
        "waste": _waste,
        "faults": _faults,
        "traffic": _traffic,
        "cost": _cost,
        "mfu": _mfu,
    }
    study: dict[str, Any] = {"kind": "pods", "seconds": {}}
    for part in parts:
        began = time.process_time()
        study |= makers[part](settings, progress)
        study["seconds"][part] = time.process_time() - began
    return study | {"provenance": provenance()}


def _waste(settings: Settings, progress: Progress) -> dict[str, Any]:
    if settings.trace is None:
        raise ValueError("the trace is replayed from a file: --trace fault_trace.json (stepfun-ai/InfiniteHBD-Trace)")
    trace = traces.load(settings.trace)
    step = progress("trace", settings.shuffles + len(ARCHITECTURES) * len(settings.tps))
    seeds = range(settings.shuffles)
    rows = waste.replay(trace, nodes=settings.nodes, tps=settings.tps, seeds=seeds, jobs=JOBS, step=step)
    tp = 32 if 32 in settings.tps else settings.tps[0]
    lines = waste.over_time(trace, nodes=settings.nodes, tp=tp, seed=0, names=OVER_TIME)
    digest = hashlib.sha256(settings.trace.read_bytes()).hexdigest()
    return {
        "trace": {"sha256": digest, "nodes": settings.nodes, **traces.statistics(trace)},
        "waste": rows,
        "over_time": {"tp": tp, "day": lines.pop("day"), "lines": lines},
    }


def _faults(settings: Settings, progress: Progress) -> dict[str, Any]:
    tp = 32 if 32 in settings.tps else settings.tps[0]
    step = progress("independent faults", len(settings.rates))
    rows = waste.iid(nodes=settings.nodes, tps=(tp,), rates=settings.rates, draws=settings.draws, step=step)
    return {"iid": rows}


def _traffic(settings: Settings, progress: Progress) -> dict[str, Any]:
    step = progress("cross-ToR traffic", len(settings.dps) * len(settings.rates) * settings.tor_draws)
    rows = []
    for dp in settings.dps:
        rows += traffic.curve(
            nodes=settings.tor_nodes,
            per_tor=settings.per_tor,
            hops=settings.hops,
            tp=settings.tor_tp,
            dp=dp,
            share=settings.share,
            rates=settings.rates,
            draws=settings.tor_draws,
            step=step,
        )
    step = progress("exact optima", len(SHAPES) * settings.gap_draws)
    return {"traffic": rows, "gap": traffic.gap(shapes=SHAPES, draws=settings.gap_draws, step=step)}


def _cost(settings: Settings, progress: Progress) -> dict[str, Any]:
    return {"cost": costs.table(), "cost_by_size": {"gpus": SIZES, "lines": costs.by_size(SIZES)}}


def _mfu(settings: Settings, progress: Progress) -> dict[str, Any]:
    return {"mfu": mfu.trend([2**i for i in range(10, 18)])}


def record(study: Mapping[str, Any], file: Path) -> None:
    """Write the study without the curves over time, which the trace gives again."""
    jsonl.write_json_atomic(file, {key: value for key, value in study.items() if key != "over_time"})


def write_page(study: Mapping[str, Any], folder: Path) -> Path:
    """Write index.html with tables and plots, and each plot as SVG and PNG beside it."""
    page = Report("InfinitePOD: rings of GPUs around faults")
    drawn = figures.draw(study)
    for name, figure in drawn.items():
        for format in ("svg", "png"):
            jsonl.write_bytes_atomic(folder / f"{name}.{format}", figures.encode(figure, format))
    page.plots("Plots", {name: figures.encode(figure, "svg") for name, figure in drawn.items()})
    for title, head, rows in tables(study):
        page.table(title, head, rows)
    page.details("Where the numbers come from", {"how": describe(study["provenance"]), **study["provenance"]})
    return page.write(folder / "index.html")


def tables(study: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables of the study as (title, head, rows)."""
    parts = []
    if "trace" in study:
        parts.append(("The trace", ["", ""], [[key, _text(value)] for key, value in study["trace"].items()]))
    if "waste" in study:
        tps = sorted({row["tp"] for row in study["waste"]})
        rows = _grid(study["waste"], "tp", "waste")
        parts.append(("GPU waste over the trace, %", ["", *(f"TP-{tp}" for tp in tps)], rows))
    if "iid" in study:
        rates = sorted({row["rate"] for row in study["iid"]})
        rows = _grid(study["iid"], "rate", "waste")
        parts.append(("GPU waste at a fault ratio, %", ["", *(f"{rate:.0%}" for rate in rates)], rows))
    if "traffic" in study:
        rates = sorted({row["rate"] for row in study["traffic"]})
        named = [{**row, "architecture": f"{row['method']}, DP {row['dp']}"} for row in study["traffic"]]
        rows = _grid(named, "rate", "cross")
        parts.append(("DP hops between ToRs at a fault ratio, %", ["", *(f"{rate:.0%}" for rate in rates)], rows))
        head = list(study["gap"][0])
        rows = [[str(row[key]) for key in head] for row in study["gap"]]
        parts.append(("DP hops between ToRs on small rings, DP 2, beside the optimum", head, rows))
    if "cost" in study:
        units = list(next(iter(study["cost"].values())))
        rows = [[name, *(_text(row[unit]) for unit in units)] for name, row in study["cost"].items()]
        parts.append(("Cost and power of the interconnect", ["", *units], rows))
    if "mfu" in study:
        rows = [
            [str(row["gpus"]), _layout(row["dgx"]), _layout(row["best"]), f"{row['ratio']:.2f}"] for row in study["mfu"]
        ]
        parts.append(("MFU in %, analytic", ["GPUs", "TP-8", "best TP", "ratio"], rows))
    return parts


def _layout(best: Mapping[str, Any]) -> str:
    return f"{100 * best['mfu']:.1f} (TP-{best['tp']}, PP-{best['pp']})"


def _grid(rows: Sequence[Mapping[str, Any]], column: str, value: str) -> list[list[str]]:
    """Lines by architecture, in percent; - where there is no figure."""
    columns = sorted({row[column] for row in rows})
    lines = []
    for name in dict.fromkeys(row["architecture"] for row in rows):
        values = {row[column]: row[value] for row in rows if row["architecture"] == name}
        cells = ["-" if values.get(at) is None else f"{100 * values[at]:.2f}" for at in columns]
        lines.append([name, *cells])
    return lines


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:,.4g}" if isinstance(value, float) and value < 1 else _plain(value)


def _plain(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
