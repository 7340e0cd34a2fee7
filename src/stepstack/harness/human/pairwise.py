"""Two models' clips of the same items, judged pair by pair: wins, ties and losses of the first. No torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol

from rich.table import Table

from stepstack.harness.metrics import Measured, clustered
from stepstack.report import jsonl
from stepstack.report.provenance import provenance

Choice = Literal["a", "tie", "b"]
WORTH: Mapping[Choice, int] = {"a": 1, "tie": 0, "b": -1}
ALL = "total"


@dataclass(frozen=True, slots=True)
class ClipPair:
    """Clips of one item by two models, of pictures or of sound.

    ``group``: what figures are split by, as a domain. ``given``: the first frame, or the recording of a voice, that
    both models were given; None where it was the prompt alone.
    """

    name: str
    group: str
    prompt: str
    given: Path | None
    a: Path
    b: Path


@dataclass(frozen=True, slots=True)
class Verdict:
    """``pair``: its name. ``judge``: an annotator's name, or what measured it."""

    pair: str
    dimension: str
    judge: str
    choice: Choice


class Judge(Protocol):
    """``dimensions``: those it has a verdict of."""

    @property
    def dimensions(self) -> Sequence[str]: ...

    def verdicts(self, pairs: Sequence[ClipPair]) -> list[Verdict]: ...


@dataclass(frozen=True, slots=True)
class Tally:
    """Verdicts for the first model. ``net``: (wins - losses) / verdicts, of each pair first and then their mean, whose
    standard error is that of independent pairs; None without a verdict."""

    dimension: str
    group: str
    wins: int
    ties: int
    losses: int
    net: Measured | None


def tallies(pairs: Sequence[ClipPair], judge: Judge) -> list[Tally]:
    """Each dimension by group and over all groups, then everything."""
    verdicts, group_of = judge.verdicts(pairs), {pair.name: pair.group for pair in pairs}
    groups = [*dict.fromkeys(group_of.values()), ALL]
    rows = [(dimension, group) for dimension in judge.dimensions for group in groups] + [(ALL, ALL)]
    return [
        tally(
            dimension,
            group,
            [v for v in verdicts if dimension in (v.dimension, ALL) and group in (group_of[v.pair], ALL)],
        )
        for dimension, group in rows
    ]


def tally(dimension: str, group: str, verdicts: Sequence[Verdict]) -> Tally:
    count = Counter(verdict.choice for verdict in verdicts)
    by_pair: dict[str, list[int]] = {}
    for verdict in verdicts:
        by_pair.setdefault(verdict.pair, []).append(WORTH[verdict.choice])
    net = clustered([fmean(worths) for worths in by_pair.values()]) if by_pair else None
    return Tally(dimension, group, count["a"], count["tie"], count["b"], net)


def by_judge(pairs: Sequence[ClipPair], judge: Judge) -> dict[str, Tally]:
    """Annotator -> everything they said."""
    verdicts = judge.verdicts(pairs)
    names = sorted({verdict.judge for verdict in verdicts})
    return {name: tally(ALL, ALL, [v for v in verdicts if v.judge == name]) for name in names}


def conclude(file: Path, labels: tuple[str, str], pairs: Sequence[ClipPair], judge: Judge) -> Table:
    """Write the result as JSON with its provenance; the table of it."""
    rows, judges = tallies(pairs, judge), by_judge(pairs, judge)
    record = {
        "kind": "pairs",
        "a": labels[0],
        "b": labels[1],
        "pairs": len(pairs),
        "rows": as_json(rows),
        "by_judge": {name: as_json([row])[0] for name, row in judges.items()},
        "provenance": provenance(),
    }
    jsonl.write_json_atomic(file, record)
    return as_table(f"{labels[0]} against {labels[1]}", rows, judges)


def as_table(title: str, rows: Sequence[Tally], judges: Mapping[str, Tally]) -> Table:
    table = Table(title=title)
    for column in ("dimension", "group", "win-tie-loss", "net win rate", "pairs"):
        table.add_column(column, justify="left" if column in ("dimension", "group") else "right")
    for row in rows:
        table.add_row(row.dimension, row.group, *_figures(row))
    for name, row in judges.items():
        table.add_row("by judge", name, *_figures(row))
    return table


def as_json(rows: Sequence[Tally]) -> list[dict[str, Any]]:
    return [
        {
            "dimension": row.dimension,
            "group": row.group,
            "wins": row.wins,
            "ties": row.ties,
            "losses": row.losses,
            "net": row.net and row.net.value,
            "stderr": row.net and row.net.stderr,
            "n": row.net.n if row.net else 0,
        }
        for row in rows
    ]


def left_is_a(seed: int, annotator: str, pair: str) -> bool:
    """Where the first model stands for an annotator: as good as drawn, and the same each time it is asked."""
    return bool(hashlib.sha256(repr((seed, annotator, pair)).encode()).digest()[0] & 1)


def _figures(row: Tally) -> tuple[str, str, str]:
    net = f"{row.net.value:+.3f}" if row.net else "-"
    net += f" ± {row.net.stderr:.3f}" if row.net and row.net.stderr is not None else ""
    return f"{row.wins}-{row.ties}-{row.losses}", net, str(row.net.n if row.net else 0)
