"""Plans of pipelines beside static ones (`make bench BENCH=pipeline`): simulated, paced, real."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins
from stepstack.simulation.pipeline import published, study
from stepstack.simulation.pipeline.study import FILLED, SEARCHED, STATIC

BESIDE = "planned, planning the next beside it"
LATE = 0.05  # of the paced seconds of all ranks, beyond which a paced figure is void
Result = Mapping[str, Any]


def targets(root: Path) -> list[Table]:
    """Targets, and what was measured."""
    return _read(root, _targets)


def drift(root: Path) -> list[Table]:
    """Drifting mixes with the cut of the targets and with one by search."""
    return _read(root, _drift)


def mixes(root: Path) -> list[Table]:
    """One mix at a time, where plans can lose."""
    return _read(root, lambda result: study.mixes_table(result["simulated"]["mixes"]))


def ablation(root: Path) -> list[Table]:
    """The planner part by part, beside the paper's."""
    return _read(root, _ablation)


def memory(root: Path) -> list[Table]:
    """Seconds that caps cost."""
    return _read(
        root, lambda result: study.memory_table([study.Capped(**one) for one in result["simulated"]["memory"]])
    )


def models(root: Path) -> list[Table]:
    """The paper's models."""
    return _read(root, _models)


def paced(root: Path) -> list[Table]:
    """Plans that were carried out, in the seconds of the 37B model, and for real."""
    return _read(root, _paced)


def _read(root: Path, make: Callable[[Result], Table]) -> list[Table]:
    file = root / "evals" / "results" / "bench-pipeline.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    result = json.loads(file.read_text())
    table = make(result)
    return [Table(table.head, table.rows, [*table.notes, describe_origins([result])])]


def tables_of(result: Result) -> list[Table]:
    """All tables of a result."""
    made = (
        _targets(result),
        _drift(result),
        study.mixes_table(result["simulated"]["mixes"]),
        _ablation(result),
        study.memory_table([study.Capped(**one) for one in result["simulated"]["memory"]]),
        _models(result),
        _paced(result),
    )
    return [Table(table.head, table.rows, table.notes, table.title) for table in made]


def _targets(result: Result) -> Table:
    simulated = result["simulated"]
    sums = {many: {plan: sum(values) for plan, values in one.items()} for many, one in simulated["drift"].items()}
    apart = f"{SEARCHED}, W apart"

    def both(over: str, plan: str) -> str:
        return ", ".join(f"{one[over] / one[plan] - 1:+.1%}" for one in sums.values())

    large, caps = simulated["large"], simulated["memory"]
    rows = [
        ["drifting mixes, 8 and 16 microbatches, over the best 1F1B family", "simulated", "+15%", both(STATIC, apart)],
        ["the same, without W apart", "simulated", "+10%", both(STATIC, SEARCHED)],
        ["the same, W apart, over static with W filled in", "simulated", "+8%", both(FILLED, apart)],
        [
            f"gap to the bound, 64 microbatches x 16 ranks, {large['actions']:,} passes",
            "simulated",
            "5%",
            f"{large['gap']:.1%}",
        ],
        [
            "planning that",
            "real",
            "2 s",
            f"{large['seconds']:.1f} s, {1e3 * large['cpu'] / large['evaluations']:.0f} ms CPU an evaluation",
        ],
        ["caps down to .35 of the free peak: plans that got stuck", "simulated", "0", f"0 of {8 * len(caps)}"],
    ]
    for ranks, target in ((4, "+15%"), (2, "+3%")):
        own = {row["name"]: median(row["seconds"]) for row in result["paced"] if row["ranks"] == ranks}
        gains = ", ".join(f"{own['static'] / own[name] - 1:+.1%}" for name in ("planned", "planned, W apart"))
        rows.append([f"a batch full of pictures, {ranks} ranks, over the best static; W apart", "paced", target, gains])
        cost = f"{own[BESIDE] / own['planned'] - 1:+.1%}"
        rows.append([f"a step with planning beside it, {ranks} ranks, over one without", "paced", "+2%", cost])
    ratios = [median(row["seconds"]) / row["simulated"] for row in result["paced"]]
    rows.append(["carried out over simulated", "paced", "at most 1.05", f"{min(ratios):.3f} to {max(ratios):.3f}"])
    return Table(["what", "how", "target", "measured"], rows, [_lateness(result)])


def _drift(result: Result) -> Table:
    simulated = result["simulated"]
    cut = simulated["searched cut"]
    chosen = ", ".join(f"{name} {count}" for name, count in cut["segments"].items())
    columns = {f"{many} microbatches": one for many, one in simulated["drift"].items()}
    columns |= {f"{many}, cut by search": one for many, one in simulated["drift, cut by search"].items()}
    notes = [
        f"Chunks on a rank: vision 1 and text 2, static pipelines up to 4 stages; by search {chosen}, static up to 8."
    ]
    return study.compare_table("", columns, notes)


def _ablation(result: Result) -> Table:
    reported, source = published.reported_figures()
    return study.ablation_table("VLM-S", result["simulated"]["ablation"], reported["ablation, VLM-S"], source)


def _models(result: Result) -> Table:
    return published.models_table([published.Simulated(**one) for one in result["simulated"]["models"]])


def _paced(result: Result) -> Table:
    rows = []
    for row in result["paced"]:
        [still] = [one for one in result["paced"] if (one["ranks"], one["name"]) == (row["ranks"], "static")]
        seconds = median(row["seconds"])
        gain, expected = median(still["seconds"]) / seconds - 1, still["simulated"] / row["simulated"] - 1
        cells = [
            f"{seconds:.2f}",
            f"{gain:+.1%}",
            f"{expected:+.1%}",
            f"{seconds / row['simulated']:.3f}",
            f"{row['late']:.2f}",
        ]
        rows.append([f"paced, {row['ranks']} ranks: {row['name']}", *cells])
    own = result["real"]
    alone = median(own["one process"])
    rows.append(["real: one process", f"{alone:.2f}", "-", "-", "-", "-"])
    still = own["rows"][0]
    for row in own["rows"]:
        seconds = median(row["seconds"])
        gain, expected = median(still["seconds"]) / seconds - 1, still["simulated"] / row["simulated"] - 1
        cells = [f"{seconds:.2f}", f"{gain:+.1%}", f"{expected:+.1%}", f"{seconds / row['simulated']:.2f}", "-"]
        rows.append([f"real, 2 ranks: {row['name']}", *cells])
    head = ["", "s", "over static", "simulated", "over simulated", "overrun, s"]
    notes = [f"medians of {result['rounds']}", _lateness(result)]
    return Table(head, rows, notes)


def _lateness(result: Result) -> str:
    rows: Sequence[Mapping[str, Any]] = result["paced"]
    share = sum(row["late"] for row in rows) / sum(row["ranks"] * sum(row["seconds"]) for row in rows)
    void = "" if share <= LATE else "VOID, the machine was too busy: "
    return f"{void}passes outlasted their pace by {share:.1%} of the paced seconds of all ranks"
