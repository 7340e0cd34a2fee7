"""Who did what when: a picture of spans of time in lanes, such as the trainer and the workers of a streamed run.

No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")  # steps, in turn
WAIT = "wait"  # name of a span in which nothing is done


@dataclass(frozen=True, slots=True)
class Span:
    """``began`` and ``ended``: seconds on one clock. ``lane``: who. ``what``: name of the deed. ``step``: for which."""

    lane: str
    what: str
    step: int
    began: float
    ended: float


def spans_of(rows: Sequence[dict[str, Any]]) -> list[Span]:
    """Spans of the rows of a timeline file."""
    return [Span(row["who"], row["what"], row["step"], row["began"], row["ended"]) for row in rows]


def last_steps(spans: Sequence[Span], count: int) -> list[Span]:
    """The spans of the newest ``count`` steps."""
    newest = max((span.step for span in spans), default=0)
    return [span for span in spans if span.step > newest - count]


def draw(spans: Sequence[Span]) -> Any:
    """Figure with a lane each for the trainer, which comes last, and the workers. Colours are steps; what is waited
    for is pale."""
    from matplotlib.figure import Figure  # heavy: only where a page is written

    lanes = sorted({span.lane for span in spans}, key=lambda lane: (lane == "trainer", lane))
    start = min(span.began for span in spans)
    figure = Figure(figsize=(11, 0.8 + 0.35 * len(lanes)), layout="constrained")
    axes = figure.subplots()
    for span in spans:
        place, colour = lanes.index(span.lane), COLOURS[span.step % len(COLOURS)]
        alpha = 0.15 if span.what == WAIT else 0.9
        axes.barh(place, span.ended - span.began, left=span.began - start, height=0.8, color=colour, alpha=alpha)
    axes.set_yticks(range(len(lanes)), lanes, fontsize=8)
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
