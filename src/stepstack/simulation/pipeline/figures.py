"""Pictures of a plan: the ranks' passes over time, and their bytes. No torch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepstack.planning.pipeline.graph import Action
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.timeline import Timeline
from stepstack.report.html import Report
from stepstack.simulation.pipeline import analysis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png", ".html")
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink")  # modules, in turn
SHADES = {"F": 0.45, "B": 0.95, "I": 0.95, "W": 0.7}
NAMED = 400  # passes at most whose microbatch is written into them
TEXT = {"F": "black", "B": "white", "I": "white", "W": "black"}


def gantt(timelines: Mapping[str, Timeline], times: str = "simulated") -> Figure:
    """Figure with a chart for each plan on one axis of time, a lane a rank. Colours are modules; forward passes are
    pale, backward ones full, gradients of weights between; the number is the microbatch. ``times``: how they were
    found."""
    from matplotlib.collections import PolyCollection  # heavy: only where one is drawn
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure

    ranks = max(len(one.plan.order) for one in timelines.values())
    figure = Figure(figsize=(11, len(timelines) * (0.8 + 0.28 * ranks)), layout="constrained")
    panels = figure.subplots(len(timelines), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, one) in zip(panels, timelines.items(), strict=True):
        colours = dict(zip((module.name for module in one.plan.graph.modules), COLOURS * 9, strict=False))
        corners, fills = [], []
        for rank, action in _placed(one):
            begin, end = one.times[action]
            corners.append([(begin, rank - 0.42), (end, rank - 0.42), (end, rank + 0.42), (begin, rank + 0.42)])
            fills.append(to_rgba(colours[one.plan.graph.parts[action.part].module], SHADES[action.kind]))
        axes.add_collection(PolyCollection(corners, facecolors=fills, edgecolors="white", linewidths=0.3))
        if len(one.times) <= NAMED:
            _number(axes, one)
        axes.set_xlim(0, max(other.makespan for other in timelines.values()))
        axes.set_ylim(len(one.plan.order) - 0.5, -0.5)
        axes.set_yticks(range(len(one.plan.order)), [f"rank {rank}" for rank in range(len(one.plan.order))], fontsize=7)
        seconds = f"{one.makespan:.4g} s ({times}), bubble {one.bubble:.1%}"
        axes.set_title(f"{name}: {seconds}" if name else seconds, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    _legend(panels[0], next(iter(timelines.values())))
    panels[-1].set_xlabel("seconds", fontsize=8)
    return figure


def memory(timeline: Timeline, profile: PipelineProfile) -> Figure:
    """Figure of the bytes that each rank keeps over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6), layout="constrained")
    axes = figure.subplots()
    for rank, steps in enumerate(analysis.memory(timeline, profile)):
        seconds, held = zip(*steps, (timeline.makespan, steps[-1][1]), strict=True)
        axes.step(seconds, [value / 2**30 for value in held], where="post", linewidth=1, label=f"rank {rank}")
    axes.set_xlabel("seconds", fontsize=8)
    axes.set_ylabel("GiB of activations", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False, ncols=4)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def encode(figure: Figure, format: str) -> bytes:
    """Figure as bytes. ``format``: svg or png."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "pipeline"}):
        figure.savefig(buffer, format=format, dpi=150, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()


def page(file: Path, title: str, timelines: Mapping[str, Timeline], profile: PipelineProfile) -> Path:
    """Write one HTML file without network: passes of all plans; bytes, bubble and critical path of the first one."""
    report, first = Report(title), next(iter(timelines.values()))
    rows = [
        [name, f"{one.makespan:.4g} s", f"{one.bubble:.1%}", f"{max(one.peak_bytes) / 2**30:.2f} GiB"]
        for name, one in timelines.items()
    ]
    report.table("Plans, simulated", ["plan", "makespan", "bubble", "peak memory"], rows)
    report.figures("Passes", [("passes of each rank over time", gantt(timelines))], wide=True)
    report.figures("Bytes", [("bytes of each rank over time", memory(first, profile))], wide=True)
    shares = analysis.bubbles(first)
    report.table("Bubble", list(shares), [[f"{share:.1%}" for share in shares.values()]])
    rows = [
        [str(one.action), f"rank {one.rank}", f"{one.begin:.4g} s", f"{one.end - one.begin:.4g} s", f"{one.wait:.3g} s"]
        for one in analysis.critical_path(first, profile)
    ]
    report.table("Critical path", ["pass", "on", "begins", "takes", "after a transfer of"], rows)
    report.details("Plan", {"digest": first.plan.digest, "order": [list(map(str, row)) for row in first.plan.order]})
    return report.write(file)


def _placed(timeline: Timeline) -> list[tuple[int, Action]]:
    return [(rank, action) for rank, actions in enumerate(timeline.plan.order) for action in actions]


def _number(axes: Any, timeline: Timeline) -> None:
    """Write the microbatch into each pass that is wide enough."""
    for rank, action in _placed(timeline):
        begin, end = timeline.times[action]
        if end - begin > timeline.makespan / 120:
            text = str(timeline.plan.graph.parts[action.part].microbatch)
            colour = TEXT[action.kind]
            axes.text((begin + end) / 2, rank, text, ha="center", va="center", fontsize=5, color=colour, clip_on=True)


def _legend(axes: Any, timeline: Timeline) -> None:
    from matplotlib.patches import Patch

    modules = [module.name for module in timeline.plan.graph.modules]
    patches = [Patch(color=colour, label=name) for name, colour in zip(modules, COLOURS * 9, strict=False)]
    axes.legend(
        handles=patches, fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(patches)
    )
