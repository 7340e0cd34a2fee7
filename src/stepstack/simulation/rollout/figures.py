"""Gantt pictures of simulated pipelines: instances, trainer and the link of the weights over time."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from stepstack.simulation.rollout.fleet import LINK, TRAINER, Busy
from stepstack.simulation.rollout.pipelines import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = 4  # steps of occupancy that are told apart
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")  # iterations, in turn


def gantt(outcomes: Mapping[str, Outcome], cap: int) -> Figure:
    """Figure with a chart for each pipeline on one axis of time. Colours are iterations; the paler an instance, the
    fewer of its ``cap`` rows decode."""
    from matplotlib.collections import PolyCollection  # heavy: only where one is drawn
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure

    lanes = max(one.instances for one in outcomes.values()) + 2
    figure = Figure(figsize=(9, len(outcomes) * (0.6 + 0.055 * lanes)), layout="constrained")
    panels = figure.subplots(len(outcomes), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, one) in zip(panels, outcomes.items(), strict=True):
        order = [*range(one.instances), TRAINER, LINK]
        spans = merged(one.spans, cap)
        corners = [_corners(span, order.index(span.lane)) for span in spans]
        colours = [to_rgba(COLOURS[span.iteration % len(COLOURS)], (span.rows or SHADES) / SHADES) for span in spans]
        axes.add_collection(PolyCollection(corners, facecolors=colours, linewidths=0))
        axes.autoscale_view()
        axes.set_title(f"{name}: {one.per_iteration:.1f} s an iteration (simulated)", fontsize=9, loc="left")
        names = {at: f"instance {at}" for at in range(0, one.instances, max(1, one.instances // 3))}
        names = {at: name for at, name in names.items() if at == 0 or at < one.instances - 2}  # room for the last name
        names[one.instances] = "trainer, weights"
        axes.set_yticks(list(names), list(names.values()), fontsize=7)
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("seconds", fontsize=8)
    return figure


def encode(figure: Figure, format: str) -> bytes:
    """Figure as bytes. ``format``: svg or png."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "rollout"}):
        figure.savefig(buffer, format=format, dpi=150, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()


def merged(spans: Sequence[Busy], cap: int) -> list[Busy]:
    """Spans for drawing: ``rows`` as occupancy in 1 to ``SHADES``, and neighbours of one lane, iteration and occupancy
    as one."""
    shaded = [
        Busy(span.lane, span.iteration, span.start, span.end, -(-span.rows * SHADES // cap) if span.lane >= 0 else 0)
        for span in sorted(spans, key=lambda span: (span.lane, span.start))
        if span.end > span.start
    ]
    return list(_joined(shaded))


def _corners(span: Busy, lane: int) -> list[tuple[float, float]]:
    top, bottom = lane - 0.4, lane + 0.4
    return [(span.start, top), (span.end, top), (span.end, bottom), (span.start, bottom)]


def _joined(spans: Sequence[Busy]) -> Iterable[Busy]:
    start = spans[0].start if spans else 0.0
    for span, following in pairwise([*spans, None]):
        assert span is not None
        key = (span.lane, span.iteration, span.rows, span.end)
        if following is None or (following.lane, following.iteration, following.rows, following.start) != key:
            yield Busy(span.lane, span.iteration, start, span.end, span.rows)
            start = following.start if following else 0.0
