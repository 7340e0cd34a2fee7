"""Plots of laws and of loss surfaces."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepstack.planning.steplaw import laws
from stepstack.planning.steplaw.advice import Advice
from stepstack.planning.steplaw.fit import Surface
from stepstack.planning.steplaw.grids import LossGrid

LEVELS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # contours of excess loss
Marks = Mapping[str, tuple[float, float]]  # a law's name -> its (learning rate, batch)


def contours(grid: LossGrid, marks: Marks, surface: Surface | None = None) -> Any:
    """Contour plot of excess loss over (learning rate, batch), in the style of the paper.

    It shows the runs, lines of equal excess between them, the fitted surface's lines dashed, and the laws' points.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.8), layout="constrained")
    _draw(figure.subplots(), grid, marks, surface)
    return figure


def sheet(
    grids: Sequence[LossGrid], marks: Sequence[Marks], surfaces: Sequence[Surface | None], across: int = 2
) -> bytes:
    """Contour plots of several grids on one sheet, as an SVG file."""
    from matplotlib.figure import Figure

    rows = -(-len(grids) // across)
    figure = Figure(figsize=(4.6 * across, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, across, squeeze=False).ravel()
    for one, grid, known, surface in zip(axes, grids, marks, surfaces, strict=False):
        _draw(one, grid, known, surface)
    for one in axes[len(grids) :]:
        one.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw(axes: Any, grid: LossGrid, marks: Marks, surface: Surface | None) -> None:
    from matplotlib.tri import Triangulation

    near = grid.within(0.5)
    levels = [level for level in LEVELS if level < near.excess.max()]
    x, y = np.log2(near.lr), np.log2(near.batch)
    if len(levels) > 1 and len(set(near.lr)) > 1 and len(set(near.batch)) > 1:
        lines = axes.tricontour(Triangulation(x, y), near.excess, levels=levels, cmap="viridis_r", linewidths=1)
        axes.clabel(lines, fmt=lambda level: f"{100 * level:g}%", fontsize=6)
    axes.scatter(x, y, c=np.minimum(near.excess, LEVELS[-1]), cmap="viridis_r", s=9)
    if surface is not None and surface.convex:
        u, v = np.meshgrid(np.linspace(x.min(), x.max(), 80), np.linspace(y.min(), y.max(), 80))
        fitted = surface(2.0**u, 2.0**v) / grid.loss.min() - 1
        axes.contour(u, v, fitted, levels=[0.001, 0.005, 0.02], colors="0.6", linewidths=0.8, linestyles="dashed")
    for (name, (lr, batch)), shape in zip(marks.items(), "*XPDs^v", strict=False):
        size = 14 if shape == "*" else 7  # so that the first is visible below the others
        axes.plot(np.log2(lr), np.log2(batch), shape, markersize=size, label=name, markeredgecolor="white")
    axes.set_title(grid.name, fontsize=9)
    axes.set_xlabel("peak learning rate", fontsize=8)
    axes.set_ylabel("batch, tokens", fontsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{2**value:.2g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{2**value:.3g}")
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6, frameon=False, loc="best")


def law_curves(advice: Advice) -> list[Any]:
    """Plots of the laws' learning rates and batches against tokens, at the advised N.

    The plateau is shaded, and the fitted range lies between dotted lines.
    """
    tokens = np.geomspace(advice.at.tokens / 30, advice.at.tokens * 30, 60)
    answers_by_tokens = [
        laws.answers(laws.LawInputs(advice.at.params, float(d), advice.at.flops_per_token, advice.at.loss))
        for d in tokens
    ]
    figures = []
    for part, title, (low, high) in (
        ("lr", "peak learning rate", advice.lr_range),
        ("batch", "batch, tokens", advice.batch_range),
    ):
        figure, axes = _axes(title)
        for law, answers in zip(answers_by_tokens[0], zip(*answers_by_tokens, strict=True), strict=True):
            values = [_part(answer)[part] for answer in answers]
            if values[0] is not None:
                axes.plot(tokens, values, label=law.law, linewidth=2 if law.law == "Step Law" else 1)
        axes.axhspan(low, high, alpha=0.15, label="loss within +0.1 %")
        axes.plot(advice.at.tokens, _part(advice.others[0])[part], "*", color="black", markersize=9)
        for edge in laws.TOKENS:
            axes.axvline(edge, color="0.6", linewidth=0.8, linestyle="dotted")
        axes.legend(fontsize=7, frameon=False)
        figures.append(figure)
    return figures


def _part(answer: laws.LawAnswer) -> dict[str, float | None]:
    return {"lr": answer.lr, "batch": answer.batch}


def _axes(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("training tokens", fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    return figure, axes
