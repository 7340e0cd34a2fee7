"""Learning curves in the READMEs, drawn from evals/results by evals/plots/<name>.yaml. No torch.

    file: recipes/perception/curves.svg
    panels:
      - {title: grounding, metric: acc@.5, results: [perception-tiny-seed1, perception-tiny-seed2]}

A line a run: its figure on the selection set, with its standard error as a band, against the step.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from stepstack.config import ROOT, ConfigError, Strict, to_dict
from stepstack.report import jsonl
from stepstack.report.layout import validate

Some = Field(min_length=1)
SELECTED = "eval/accuracy"  # key of the metric that a recipe selects by, whose error is eval/stderr


@dataclass(frozen=True, slots=True)
class Panel(Strict):
    """Panel of a plot. ``metric``: name of the plotted value in the title.

    ``value``: key of the curve, by default the metric of the selection set. ``results``: names in evals/results.
    """

    title: str
    metric: str
    results: Annotated[tuple[str, ...], Some]
    value: str = SELECTED


@dataclass(frozen=True, slots=True)
class Plot(Strict):
    file: str
    panels: Annotated[tuple[Panel, ...], Some]


def generate(check: bool = False, root: Path = ROOT) -> list[Path]:
    """Draw the plots whose data changed since their file was drawn, and return these files. ``check``: draw nothing."""
    stale = []
    for source in sorted((root / "evals" / "plots").glob("*.yaml")):
        plot: Plot = validate(Plot, yaml.safe_load(source.read_text(encoding="utf-8")), str(source.relative_to(root)))
        curves = {name: _curve(name, root) for panel in plot.panels for name in panel.results}
        facts = json.dumps([to_dict(plot), curves], sort_keys=True)
        out, mark = root / plot.file, hashlib.sha256(facts.encode()).hexdigest()
        if out.is_file() and mark in out.read_text():
            continue
        stale.append(out)
        if not check:
            jsonl.write_text_atomic(out, _svg(plot, curves, mark))
    return stale


def _curve(name: str, root: Path) -> list[dict[str, float]]:
    file = root / "evals" / "results" / f"{name}.json"
    curve = jsonl.read_json(file).get("curve") if file.is_file() else None
    if not curve:
        raise ConfigError(f"evals/results/{name}.json has no curve: record a finished run again (stepstack record)")
    return curve


def _svg(plot: Plot, curves: Mapping[str, Sequence[Mapping[str, Any]]], mark: str) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure  # heavy: only where one is drawn

    figure = Figure(figsize=(3.2 * len(plot.panels), 2.7), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(plot.panels), squeeze=False)[0], plot.panels, strict=True):
        for name in panel.results:
            rows = [row for row in curves[name] if panel.value in row]
            steps, values = ([row[key] for row in rows] for key in ("step", panel.value))
            (line,) = axes.plot(steps, values, linewidth=1.4)
            if panel.value == SELECTED:
                low, high = ([row[SELECTED] + sign * row.get("eval/stderr", 0.0) for row in rows] for sign in (-1, 1))
                axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_title(f"{panel.title}: {panel.metric}", fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": mark}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Description": mark})
    return buffer.getvalue()
