"""Curves as data for a page's script: the metrics of one or several stages, grouped by the glossary. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from stepstack.report import glossary
from stepstack.report.glossary import ChartText

MAX_POINTS = 1000  # of a line; of more, the least and the greatest of each stretch are kept
COMPARED_POINTS = 200  # the same of a line where many runs are compared
DIGITS = 5  # significant ones of a value


@dataclass(frozen=True, slots=True)
class StageRows:
    """Rows of metrics.jsonl of one stage, in the order of their steps."""

    name: str
    rows: Sequence[Mapping[str, float]]

    @property
    def seconds(self) -> list[float]:
        """Seconds since the stage began, at the end of each row's step; the time in which a run was stopped is none."""
        return list(accumulate(row.get("time/step", 0.0) for row in self.rows))

    def total(self, metric: str) -> float:
        return sum(row.get(metric, 0.0) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart. ``lines``: label, index of the stage, indices of rows (``at``) and values (``y``) each.
    ``thinned_to``: the most points of a line, 0 where all are there. ``not_finite``: values that are left out."""

    text: ChartText
    lines: Sequence[Mapping[str, Any]]
    thinned_to: int = 0
    not_finite: int = 0


def axes(stages: Sequence[StageRows]) -> list[dict[str, Any]]:
    """Name, steps and seconds of each stage."""
    return [
        {"name": stage.name, "step": [row["step"] for row in stage.rows], "time": [round(t, 1) for t in stage.seconds]}
        for stage in stages
    ]


def metrics_of(stages: Sequence[StageRows]) -> list[str]:
    return list(dict.fromkeys(name for stage in stages for row in stage.rows for name in row))


def charts(stages: Sequence[StageRows]) -> tuple[list[Chart], list[Chart]]:
    """Charts of the glossary, and one for each metric that it leaves out."""
    names = metrics_of(stages)
    explained = [chart(text, group, stages) for text, group in glossary.grouped(names)]
    left = [chart(ChartText(name, "", (name,), "", ""), [name], stages) for name in glossary.others(names)]
    return [one for one in explained if one.lines], [one for one in left if one.lines]


def chart(text: ChartText, names: Sequence[str], stages: Sequence[StageRows], most: int = MAX_POINTS) -> Chart:
    """Chart of metrics in all stages that have them. Values that are not finite are counted and left out."""
    if text.stacked:
        return _stack(text, names, stages)
    lines: list[dict[str, Any]] = []
    thinned, lost = False, 0
    for name in names:
        for index, stage in enumerate(stages):
            points = [(at, row[name]) for at, row in enumerate(stage.rows) if name in row]
            finite = [(at, y) for at, y in points if math.isfinite(y)]
            lost += len(points) - len(finite)
            kept = thin(finite, most)
            thinned |= len(kept) < len(finite)
            if kept:
                at, y = zip(*kept, strict=True)
                lines.append({"label": name, "stage": index, "at": list(at), "y": [_short(value) for value in y]})
    return Chart(text, lines, most if thinned else 0, lost)


def compared(runs: Mapping[str, Sequence[StageRows]]) -> list[Chart]:
    """Charts of the glossary with a line a run: the first metric of the chart that the run has. Each run has one stage,
    or none."""
    named = [(name, stage) for name, stages in runs.items() for stage in stages]
    firsts = [{text.title: names[0] for text, names in glossary.grouped(metrics_of([stage]))} for _, stage in named]
    out = []
    for text in glossary.CHARTS:
        if text.stacked:
            continue
        parts = [
            (index, name, chart(text, [firsts[index][text.title]], [stage], COMPARED_POINTS))
            for index, (name, stage) in enumerate(named)
            if text.title in firsts[index]
        ]
        lines = [{**line, "label": name, "stage": index} for index, name, part in parts for line in part.lines]
        thinned, lost = max((p.thinned_to for *_, p in parts), default=0), sum(p.not_finite for *_, p in parts)
        out.append(Chart(text, lines, thinned, lost))
    return [one for one in out if one.lines]


def thin(points: Sequence[tuple[int, float]], most: int = MAX_POINTS) -> list[tuple[int, float]]:
    """The points, or of more than ``most`` the first, the last, and the least and greatest of equal stretches."""
    if len(points) <= most:
        return list(points)
    stretches = most // 2 - 1
    kept = {points[0], points[-1]}
    for k in range(stretches):
        part = points[k * len(points) // stretches : (k + 1) * len(points) // stretches]
        kept |= {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
    return sorted(kept)


def _stack(text: ChartText, names: Sequence[str], stages: Sequence[StageRows]) -> Chart:
    """Bands at the same rows for all metrics; of more than MAX_POINTS rows, means of equal stretches."""
    lines: list[dict[str, Any]] = []
    thinned = False
    for index, stage in enumerate(stages):
        count = len(stage.rows)
        parts = min(count, MAX_POINTS)
        thinned |= parts < count
        cuts = [k * count // parts for k in range(parts + 1)] if parts else []
        for name in names:
            if any(name in row for row in stage.rows):
                y = [row.get(name, 0.0) for row in stage.rows]
                means = [sum(y[a:b]) / (b - a) for a, b in pairwise(cuts)]
                lines.append({"label": name, "stage": index, "at": cuts[:-1], "y": [_short(value) for value in means]})
    return Chart(text, lines, MAX_POINTS if thinned else 0)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
