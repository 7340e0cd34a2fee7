"""Tables of InfinitePOD: evals/results/pods.json (measured by `stepstack sim pods --record`) beside published figures.

Here measured and reported share a row, in columns of their own, because the question is how far apart they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepstack.report.formats import Table
from stepstack.report.layout import Publication, describe_origins, validate

WASTE, RATIO, LEVEL, CENT = 0.3, 0.3, 0.01, 0.005  # tolerances: points of waste, of faulty nodes, of levels; dollars
NEAR_ZERO = 5.0  # percent of hops between ToRs: our reading of the abstract's words


def reproduced(root: Path) -> list[Table]:
    """Waste at TP-32 and cost, measured beside reported, with the verdict at a tolerance."""
    study = _study(root)
    if study is None:
        return _nothing()
    published, source = _published("pods", root)
    rows = []
    measured = {(row["architecture"], row["tp"]): 100 * row["waste"] for row in study["waste"]}
    for name, reported in published["waste TP-32"].items():
        rows.append(_compared(f"GPU waste over the trace, TP-32, {name}, %", measured[name, 32], reported, WASTE))
    dear, cheap = study["cost"]["NVL-72"]["$/GPU/GBps"], study["cost"]["InfinitePOD K=2"]["$/GPU/GBps"]
    rows.append(_compared("InfinitePOD K=2 to NVL-72, $ per GPU and GB/s, %", 100 * cheap / dear, 31.0, 0.5))
    under = [row for row in study["traffic"] if row["method"] == "aligned" and row["rate"] <= 0.07 and row["cross"]]
    for dp in sorted({row["dp"] for row in under}):
        worst = max(100 * row["cross"] for row in under if row["dp"] == dp)
        verdict = "within" if worst <= NEAR_ZERO else "above; the paper's job and DP degree are not known"
        what = f"cross-ToR rate up to 7% faults, our placement, DP {dp}, %"
        rows.append([what, f"{worst:.1f}", "near zero", f"{NEAR_ZERO:g}", verdict])
    top = max(study["mfu"], key=lambda row: row["ratio"])
    rows.append([f"MFU to TP-8's at {top['gpus']} GPUs", f"{top['ratio']:.2f}", "3.37", "", "trend only"])
    rows.append(["cross-ToR curves of the paper", "", "", "", "not established"])
    rows.append(["waste of the other architectures and TP sizes", "below", "", "", "not established"])
    rows.append(["power of NVL-36x2 (its active copper)", "", "", "", "not established"])
    notes = [_measured(study), f"reported, not measured by us: {source}"]
    return [Table(["", "measured here", "reported", "tolerance", "verdict"], rows, notes)]


def trace(root: Path) -> list[Table]:
    study = _study(root)
    if study is None:
        return _nothing()
    published, source = _published("pods", root)
    facts = study["trace"]
    rows = [
        _compared(f"faulty nodes over time, {key}, %", 100 * facts[f"faulty nodes, {key}"], reported, RATIO)
        for key, reported in published["faulty nodes"].items()
    ]
    rows += [
        _compared(f"{key} faults, %", 100 * facts[f"{key} faults"], reported, LEVEL)
        for key, reported in published["fault levels"].items()
    ]
    alone = ("events", "faults", "nodes ever faulty", "days", "duration in days, mean", "duration in days, median")
    rows += [[key, f"{facts[key]:.10g}", "", "", ""] for key in alone]
    notes = [_measured(study), f"trace: sha256 {facts['sha256'][:16]}; reported, not measured by us: {source}"]
    return [Table(["", "measured here", "reported", "tolerance", "verdict"], rows, notes)]


def waste(root: Path) -> list[Table]:
    """Waste over the trace, for every architecture and TP size."""
    study = _study(root)
    if study is None:
        return _nothing()
    rows = study["waste"]
    tps = sorted({row["tp"] for row in rows})
    lines = []
    for name in dict.fromkeys(row["architecture"] for row in rows):
        by_tp = {row["tp"]: row for row in rows if row["architecture"] == name}
        cells = [
            f"{100 * by_tp[tp]['waste']:.2f} ± {100 * by_tp[tp]['waste_stderr']:.2f}" if tp in by_tp else "-"
            for tp in tps
        ]
        wide = by_tp.get(32)
        extra = [f"{100 * wide['largest_p01']:.1f}", f"{100 * wide['waiting']['0.9']:.1f}"] if wide else ["-", "-"]
        lines.append([name, *cells, *extra])
    head = ["wasted GPUs, %", *(f"TP-{tp}" for tp in tps), "TP-32: job that fits 99% of the time", "a 90% job waits"]
    how = "mean over time ± standard error over 5 shufflings of servers; last columns in % of GPUs and of time"
    return [Table(head, lines, [f"{_measured(study)}; {how}; {study['seconds']['waste']:.1f} CPU-s"])]


def faults(root: Path) -> list[Table]:
    study = _study(root)
    if study is None:
        return _nothing()
    rows = study["iid"]
    rates = sorted({row["rate"] for row in rows})
    lines = []
    for name in dict.fromkeys(row["architecture"] for row in rows):
        by_rate = {row["rate"]: row for row in rows if row["architecture"] == name}
        lines.append([name, *(_with_closed(by_rate[rate]) for rate in rates)])
    head = [f"TP-{rows[0]['tp']}, wasted GPUs, %", *(f"{rate:.0%} faulty" for rate in rates)]
    return [Table(head, lines, [f"{_measured(study)}; in brackets the closed form"])]


def traffic(root: Path) -> list[Table]:
    study = _study(root)
    if study is None:
        return _nothing()
    rows = study["traffic"]
    rates = sorted({row["rate"] for row in rows})
    lines = []
    for dp in sorted({row["dp"] for row in rows}):
        for method in dict.fromkeys(row["method"] for row in rows):
            by_rate = {row["rate"]: row["cross"] for row in rows if (row["dp"], row["method"]) == (dp, method)}
            cells = ["-" if by_rate[rate] is None else f"{100 * by_rate[rate]:.1f}" for rate in rates]
            lines.append([str(dp), method, *cells])
    first = rows[0]
    how = (
        f"{first['nodes']} nodes of 4 GPUs, {first['per_tor']} a ToR, K={first['hops']}, TP-{first['tp']}, a job of "
        f"{first['share']:.0%} of the nodes, mean of {max(row['placed'] for row in rows)} draws"
    )
    head = ["DP", "hops between ToRs, %", *(f"{rate:.0%} faulty" for rate in rates)]
    return [
        Table(head, lines, [f"{_measured(study)}; {how}; {study['seconds']['traffic']:.0f} CPU-s with the next table"])
    ]


def gap(root: Path) -> list[Table]:
    study = _study(root)
    if study is None:
        return _nothing()
    methods = ("greedy", "lines", "constrained", "aligned", "best", "exact")
    lines = [
        [f"{row['nodes']} nodes, {row['per_tor']} a ToR, {row['group']} a group", str(row["cases"]), str(row["hops"])]
        + [str(row[method]) for method in methods]
        for row in study["gap"]
    ]
    head = ["DP 2", "cases", "hops", *methods[:-1], "optimum (HiGHS)"]
    return [Table(head, lines, [f"{_measured(study)}; hops between ToRs, summed over cases"])]


def cost(root: Path) -> list[Table]:
    study = _study(root)
    if study is None:
        return _nothing()
    published, source = _published("pods-cost", root)
    units = ("$/GPU", "$/GPU/GBps", "W/GPU", "W/GPU/GBps")
    lines = []
    for name, row in study["cost"].items():
        cells = []
        for unit in units:
            reported = published.get(name, {}).get(unit)
            have = "-" if row[unit] is None else f"{row[unit]:.2f}"
            cells.append(f"{have} ({'-' if reported is None else f'{reported:.2f}'})")
        agree = all(abs(row[unit] - reported) <= CENT + 1e-9 for unit, reported in published[name].items())
        lines.append([name, *cells, "to the cent" if agree else "differs"])
    notes = [f"{_measured(study)}; in brackets reported, not measured by us: {source}"]
    return [Table(["interconnect", *units, "verdict"], lines, notes)]


def mfu(root: Path) -> list[Table]:
    study = _study(root)
    if study is None:
        return _nothing()
    lines = []
    for row in study["mfu"]:
        cells = [f"{100 * row[k]['mfu']:.1f} (TP-{row[k]['tp']}, PP-{row[k]['pp']})" for k in ("dgx", "best")]
        lines.append([str(row["gpus"]), *cells, f"{row['ratio']:.2f}"])
    return [Table(["GPUs", "MFU with TP-8, %", "with the best TP, %", "ratio"], lines, [_measured(study)])]


def bench(root: Path) -> list[Table]:
    """Speeds as ratios against a naive peer of the same run."""
    file = root / "evals" / "results" / "bench-pods.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    result = json.loads(file.read_text())
    lines = [[row["what"], row["ours"], row["peer"], f"{row['ratio']:.1f}x"] for row in result["rows"]]
    return [
        Table(["CPU time of one core", "ours", "peer", "ratio"], lines, [f"measured; {describe_origins([result])}"])
    ]


def _study(root: Path) -> dict[str, Any] | None:
    file = root / "evals" / "results" / "pods.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _nothing() -> list[Table]:
    return [Table((), (), ["Not measured yet."])]


def _published(name: str, root: Path) -> tuple[dict[str, Mapping[str, float]], str]:
    """Values by key, and where they were published."""
    file = root / "evals" / "reported" / f"{name}.json"
    publication: Publication = validate(Publication, json.loads(file.read_text()), str(file.relative_to(root)))
    return {row.key: row.values for row in publication.rows}, "; ".join(publication.sources.values())


def _measured(study: Mapping[str, Any]) -> str:
    return f"measured; {describe_origins([study])}"


def _compared(what: str, here: float, reported: float, tolerance: float) -> list[str]:
    agree = "within" if abs(here - reported) <= tolerance else "differs"
    return [what, f"{here:.2f}", f"{reported:.2f}", f"{tolerance:g}", agree]


def _with_closed(row: Mapping[str, Any]) -> str:
    return f"{100 * row['waste']:.2f}" + ("" if row["closed"] is None else f" ({100 * row['closed']:.2f})")
