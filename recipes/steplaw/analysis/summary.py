"""Fit as plain JSON values, as rows of a table, and as a page with its contour plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.steplaw.analysis import figures, judge
from recipes.steplaw.analysis.tables import formula
from stepstack.planning.steplaw import fit, laws
from stepstack.planning.steplaw.fit import Optima, Surface
from stepstack.planning.steplaw.grids import LossGrid
from stepstack.planning.steplaw.laws import PowerLaw
from stepstack.report import jsonl
from stepstack.report.html import Report

MIN_BOOTSTRAP_POINTS = 6  # with fewer, too many resamples of a bootstrap determine no law
Track = Callable[[Sequence[str]], Iterable[str]]  # a progress bar around the names of estimators


def surfaces(grids: Sequence[LossGrid], window: float) -> list[Surface | str]:
    """Surface of each grid, or the reason why there is none."""
    fits: list[Surface | str] = []
    for grid in grids:
        try:
            fits.append(fit.surface(grid, window))
        except ValueError as error:
            fits.append(str(error))
    return fits


def optima_points(estimator: str, grids: Sequence[LossGrid], window: float, tolerance: float) -> Optima:
    """Optima by an estimator. ValueError where a surface has no minimum."""
    match estimator:
        case "near":
            return fit.near_best(grids, tolerance)
        case "surface":
            return fit.minima(grids, window)
        case _:
            return fit.best(grids)


def fit_law(optima: Optima, draws: int, batch_of_params: bool = False) -> dict[str, Any]:
    """Power law with its R² and, for enough points, bootstrap intervals at 95 %. ValueError where there is none."""
    law = fit.power_law(optima, batch_of_params)
    facts: dict[str, Any] = {"lr": law.lr, "batch": law.batch, "points": len(optima.lr)}
    facts["r2"] = fit.r_squared(law, optima)
    if len(optima.lr) >= MIN_BOOTSTRAP_POINTS and draws:
        drawn = fit.bootstrap(optima, draws, batch_of_params=batch_of_params)
        for name in ("lr", "batch"):
            columns = np.array([getattr(one, name) for one in drawn]).T
            facts[f"{name}_interval"] = [fit.interval(column) for column in columns]
    return facts


def summarise(
    grids: Sequence[LossGrid],
    *,
    window: float = fit.SURFACE_WINDOW,
    tolerance: float = fit.NEAR_BEST,
    draws: int = 1000,
    batch_of_params: bool = False,
    track: Track = iter,
) -> dict[str, Any]:
    """Grids with their optima, and a law by each estimator or the reason why there is none."""
    summary: dict[str, Any] = {"window": window, "tolerance": tolerance, "draws": draws, "grids": [], "laws": {}}
    for grid, surface in zip(grids, surfaces(grids, window), strict=True):
        summary["grids"].append(_grid(grid, surface))
    for name in track(list(fit.ESTIMATORS)):
        try:
            summary["laws"][name] = fit_law(optima_points(name, grids, window, tolerance), draws, batch_of_params)
        except ValueError as error:
            summary["laws"][name] = {"why": str(error)}
    return summary


def _grid(grid: LossGrid, surface: Surface | str) -> dict[str, Any]:
    at = int(grid.loss.argmin())
    facts: dict[str, Any] = {"model": grid.model, "params": grid.params, "tokens": grid.tokens, "runs": len(grid.loss)}
    facts |= {"diverged": grid.diverged, "loss": float(grid.loss[at])}
    facts["best"] = {"lr": float(grid.lr[at]), "batch": float(grid.batch[at])}
    if isinstance(surface, str):
        return facts | {"surface": {"why": surface}}
    minimum: dict[str, Any] = {"convex": surface.convex, "residual": surface.residual / surface.floor}
    if surface.convex:
        minimum |= {"lr": surface.lr, "batch": surface.batch, "plateau": surface.plateau(1e-3)}
    return facts | {"surface": minimum}


def grid_rows(summary: Mapping[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Head and rows: the best run of each grid and the minimum of its surface."""
    rows = []
    for one in summary["grids"]:
        name = f"{one['model']} N={one['params']:.4g} D={one['tokens']:.4g}".strip()
        best, surface = one["best"], one["surface"]
        row = [name, str(one["runs"]), str(one["diverged"]), f"{one['loss']:.4f}"]
        row += [f"{best['lr']:.3g}", f"{best['batch']:,.0f}"]
        row += [f"{surface['lr']:.3g}", f"{surface['batch']:,.0f}"] if "lr" in surface else ["-", "-"]
        row.append("-" if "why" in surface else "yes" if surface["convex"] else "no")
        rows.append(row)
    return ("grid", "runs", "diverged", "loss", "best lr", "batch", "surface lr", "batch", "convex"), rows


def law_rows(summary: Mapping[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Head and rows: the law of each estimator, Step Law last."""
    rows = []
    for name, law in summary["laws"].items():
        if "why" in law:
            rows.append([name, "-", "-", "-", law["why"]])
            continue
        formulas = [formula(law[part], law.get(f"{part}_interval")) for part in ("lr", "batch")]
        rows.append([name, *formulas, " / ".join(f"{share:.3f}" for share in law["r2"]), f"{law['points']} points"])
    rows.append(["Step Law", formula(laws.STEP.lr), formula(laws.STEP.batch), "", "as published"])
    return ("fitted to", "learning rate", "batch, tokens", "R²", ""), rows


def page(title: str, summary: Mapping[str, Any], grids: Sequence[LossGrid], path: Path) -> Path:
    """Write the tables, and a contour plot a grid with Step Law's point and each fitted law's."""
    report = Report(title)
    add(report, summary, grids)
    return report.write(path)


def add(report: Report, summary: Mapping[str, Any], grids: Sequence[LossGrid]) -> None:
    report.table("Grids", *grid_rows(summary))
    report.table("Power laws", *law_rows(summary))
    drawn = []
    for one, marks, surface in zip(grids, *_marks(summary, grids), strict=True):
        drawn.append((one.name, figures.contours(one, marks, surface)))
    report.figures("Excess loss over learning rate and batch", drawn)


def sheet(summary: Mapping[str, Any], grids: Sequence[LossGrid], path: Path) -> Path:
    """Write the contour plots alone, as one SVG file."""
    jsonl.write_bytes_atomic(path, figures.sheet(grids, *_marks(summary, grids)))
    return path


def _marks(summary: Mapping[str, Any], grids: Sequence[LossGrid]) -> tuple[list[figures.Marks], list[Surface | None]]:
    """Points of the laws on each grid, and its surface."""
    known = {"Step Law": laws.STEP}
    for name, law in summary["laws"].items():
        if "why" not in law:
            known[f"fitted: {name}"] = PowerLaw(tuple(law["lr"]), tuple(law["batch"]))
    marks: list[figures.Marks] = [{name: judge.at_grid(law)(grid) for name, law in known.items()} for grid in grids]
    return marks, [None if isinstance(one, str) else one for one in surfaces(grids, summary["window"])]
