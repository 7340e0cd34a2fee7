"""Step Law's claims against the authors' released tables: github.com/step-law/steplaw, data/. No licence, never copied.

The paper's runs of 60M, 120M and of its 1B test point were not released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.steplaw.analysis import judge, summary
from recipes.steplaw.analysis.judge import Law
from stepstack.planning.steplaw import fit, grids, laws
from stepstack.planning.steplaw.grids import Columns, LossGrid
from stepstack.report.html import Report

SEQUENCE = 2048
DENSE, MOE, FITS = "dense_lr_bs_loss.csv", "moe_lr_bs_loss.csv", "1004_fitted_lr_bs_scaling_model_parameters.csv"
SHAPE = ("h", "ffnh", "numl")
VALLEY_WINDOW = 0.05  # excess loss of the runs in slices; above it, runs diverge at random heights
# Mean excess loss on the paper's own grids, per mille, as its table 1 prints it.
REPORTED = {"Step Law": 0.94, "Porian": 3.71, "Microsoft": 9.25, "DeepSeek": 9.26, "OpenAI": 9.51}

Track = Callable[[Sequence[str]], Iterable[str]]


def load(folder: Path) -> tuple[list[LossGrid], list[LossGrid]]:
    """The 17 dense grids and the 16 of mixtures of experts."""
    columns = Columns(loss="smooth loss", sequence=SEQUENCE)
    mixed = Columns(loss="smooth loss", sequence=SEQUENCE, model="moe_name")
    return grids.read([folder / DENSE], columns), grids.read([folder / MOE], mixed)


def reproduce(folder: Path, track: Track = iter) -> dict[str, Any]:
    """All results, in plain JSON values."""
    dense, moe = load(folder)
    shapes = {float(row["N"]): row for row in grids.rows(folder / DENSE, ("N", *SHAPE))}
    parts: dict[str, Callable[[], Any]] = {
        "bootstrap": lambda: bootstrap_means(folder / FITS),
        "counts": lambda: counted_rows(folder),
        "refits": lambda: refits(dense, moe),
        "excess": lambda: excess(dense, shapes),
        "moe": lambda: total_or_active(folder, moe),
        "convexity": lambda: {"dense": convexity(dense), "moe": convexity(moe)},
        "plateau": lambda: plateau(dense),
        "held_out": lambda: contest(dense, moe),
    }
    return {"kind": "steplaw-released"} | {name: parts[name]() for name in track(list(parts))}


def bootstrap_means(file: Path) -> dict[str, Any]:
    """Means and intervals of the authors' 1,000 bootstrap fits."""
    names = ("lr_intercept", "lr_coefN", "lr_coefD", "bs_intercept", "bs_coefD")
    table = np.array([[float(row[name]) for name in names] for row in grids.rows(file, names)])
    mean = table.mean(axis=0)
    return {
        "draws": len(table),
        "lr": [float(np.exp(mean[0])), *map(float, mean[1:3])],
        "batch": [float(np.exp(mean[3])), float(mean[4])],
        "intervals": {
            name: fit.interval(column) for name, column in zip(names[1:3] + names[4:], table.T[[1, 2, 4]], strict=True)
        },
    }


def counted_rows(folder: Path) -> dict[str, Any]:
    """Rows whose N the formula gives exactly: dense, and mixtures by all and by active parameters."""
    dense = grids.rows(folder / DENSE, ("N", *SHAPE))
    moe = grids.rows(folder / MOE, ("N", "Na", *SHAPE, "numld", "nume", "topk", "moeh", "sed"))
    return {
        "dense": [sum(dense_params(row) == int(row["N"]) for row in dense), len(dense)],
        "moe": [sum(moe_params(row, row["nume"]) == int(row["N"]) for row in moe), len(moe)],
        "moe_active": [sum(moe_params(row, row["topk"]) == int(row["Na"]) for row in moe), len(moe)],
    }


def dense_params(row: Mapping[str, str]) -> int:
    """Parameters layers x (4 h² + 3 h f): attention with as many key as query heads, SwiGLU of width f."""
    hidden, width, layers = (int(row[name]) for name in SHAPE)
    return layers * (4 * hidden**2 + 3 * hidden * width)


def moe_params(row: Mapping[str, str], experts: str) -> int:
    """Parameters of a mixture, whose first ``numld`` layers are dense; ``sed`` is the width of the shared expert."""
    hidden, width, layers = (int(row[name]) for name in SHAPE)
    dense, number, one, shared = int(row["numld"]), int(experts), int(row["moeh"]), int(row["sed"])
    blocks = dense * 3 * hidden * width + (layers - dense) * 3 * hidden * (number * one + shared)
    return layers * 4 * hidden**2 + blocks


def refits(dense: Sequence[LossGrid], moe: Sequence[LossGrid]) -> dict[str, Any]:
    """Laws fitted anew, by the authors' procedure ("near") and by others."""
    points = {
        "near": fit.near_best(dense),
        "best": fit.best(dense),
        "surface": fit.minima(dense),
        "near, dense and MoE": fit.near_best([*dense, *moe]),
    }
    laws_found = {name: summary.fit_law(optima, draws=1000) for name, optima in points.items()}
    for name in ("near", "near, dense and MoE"):
        laws_found[f"{name}; batch of N and D"] = summary.fit_law(points[name], draws=1000, batch_of_params=True)
    return laws_found


def rivals(shapes: Mapping[float, Mapping[str, str]]) -> dict[str, Law]:
    """Laws that can be evaluated at a grid. OpenAI's batch takes the grid's own smallest loss."""

    def deepseek(grid: LossGrid) -> tuple[float, float]:
        hidden, width, layers = (int(shapes[grid.params][name]) for name in SHAPE)
        lr, batch = laws.deepseek(laws.flops_per_token(hidden, width, layers, SEQUENCE) * grid.tokens)
        return float(lr), float(batch)

    def porian(grid: LossGrid) -> tuple[float, float]:
        lr, batch = laws.porian(grid.params)
        return float(lr), float(batch)

    def openai(grid: LossGrid) -> tuple[float, float]:
        return float(laws.openai(grid.params)), float(laws.openai_batch(float(grid.loss.min())))

    return {"Step Law": judge.at_grid(laws.STEP), "Porian": porian, "DeepSeek": deepseek, "OpenAI": openai}


def excess(dense: Sequence[LossGrid], shapes: Mapping[float, Mapping[str, str]]) -> dict[str, Any]:
    """Mean excess loss of each law over the dense grids, per mille, beside the paper's."""
    surfaces = [fit.surface(grid) for grid in dense]
    figures = {}
    for name, law in rivals(shapes).items():
        quadratic = [
            float(surface(*law(grid)) / surface.floor - 1) for grid, surface in zip(dense, surfaces, strict=True)
        ]
        figures[name] = judge.excess(law, dense).means() | {"quadratic": 1e3 * float(np.mean(quadratic))}
        figures[name]["reported"] = REPORTED[name]
    return figures


def total_or_active(folder: Path, moe: Sequence[LossGrid]) -> dict[str, Any]:
    """Excess of Step Law on the mixtures, with N all parameters and with N those active for a token."""
    active = {
        (row["moe_name"], float(row["N"])): float(row["Na"])
        for row in grids.rows(folder / MOE, ("N", "Na", "moe_name"))
    }

    def by_active(grid: LossGrid) -> tuple[float, float]:
        lr, batch = laws.STEP(active[grid.model, grid.params], grid.tokens)
        return float(lr), float(batch)

    return {
        "total": judge.excess(judge.at_grid(laws.STEP), moe).means(),
        "active": judge.excess(by_active, moe).means(),
    }


def convexity(some: Sequence[LossGrid]) -> dict[str, Any]:
    """Number of grids whose fitted surface has a minimum, and of slices with one valley.

    Slices are counted over all runs, and over those within ``VALLEY_WINDOW`` of the best.
    """
    every, near = (
        np.array([judge.valleys(one) for one in group]).sum(axis=0)
        for group in (some, [g.within(VALLEY_WINDOW) for g in some])
    )
    return {
        "surfaces": [sum(fit.surface(grid).convex for grid in some), len(some)],
        "slices": [int(n) for n in every],
        "slices_near": [int(n) for n in near],
    }


def plateau(dense: Sequence[LossGrid]) -> dict[str, float]:
    """Median factors of the learning rate and the batch at which a surface has risen by 0.1 %."""
    lr, batch = np.median([fit.surface(grid).plateau(1e-3) for grid in dense], axis=0)
    return {"lr": float(lr), "batch": float(batch)}


def contest(dense: Sequence[LossGrid], moe: Sequence[LossGrid]) -> dict[str, Any]:
    """Excess loss of laws on grids that they were not fitted to, against Step Law as published, per mille."""
    both = [*dense, *moe]
    step = judge.excess(judge.at_grid(laws.STEP), both)
    cut = len(dense)
    families = []
    for family in judge.FAMILIES:
        alone, joint = judge.held_out(family, dense), judge.held_out(family, both)
        moved = judge.excess(judge.at_grid(family.fitted(dense)), moe)
        families.append(
            {
                "family": family.name,
                "dense": _against(alone, step, slice(0, cut)),
                "dense_to_moe": _against(moved, step, slice(cut, None)),
                "joint_dense": _against(joint, step, slice(0, cut), slice(0, cut)),
                "joint_moe": _against(joint, step, slice(cut, None), slice(cut, None)),
            }
        )
    nested, chosen = judge.held_out_choice(judge.FAMILIES, dense)
    return {
        "step": {"dense": _figures(step, slice(0, cut)), "moe": _figures(step, slice(cut, None))},
        "families": families,
        "nested": _against(nested, step, slice(0, cut)) | {"chosen": sorted({family.name for family in chosen})},
    }


def _figures(excess: judge.Excess, part: slice = slice(None)) -> dict[str, float]:
    return {name: 1e3 * float(getattr(excess, name)[part].mean()) for name in ("nearest", "interpolated")}


def _against(ours: judge.Excess, step: judge.Excess, theirs: slice, part: slice = slice(None)) -> dict[str, Any]:
    """Means, and their difference from Step Law's, with a 95 % interval over grids."""
    figures: dict[str, Any] = dict(_figures(ours, part))
    for name in ("nearest", "interpolated"):
        gap = judge.paired(getattr(ours, name)[part], getattr(step, name)[theirs])
        figures[f"{name}_gap"] = [1e3 * value for value in gap]
    return figures


def page(folder: Path, result: Mapping[str, Any], path: Path) -> Path:
    """Write a page with contour plots of all grids and the laws' points, like the paper's figures, below the fits."""
    dense, moe = load(folder)
    report = Report("Step Law on the released grids")
    for title, some in (("dense", dense), ("mixture of experts", moe)):
        report.heading(title)
        summary.add(report, summary.summarise(some, draws=0), some)
    report.details("Figures", result)
    return report.write(path)
