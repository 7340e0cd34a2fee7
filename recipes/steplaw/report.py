"""Report of a sweep: its table of runs, the law fitted to it, and the loss of that law on held-out cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.steplaw.analysis import judge, summary, tables
from recipes.steplaw.config import Config
from stepstack.core.run import Run
from stepstack.harness.training import page
from stepstack.harness.training.history import read as read_history
from stepstack.planning.steplaw import fit, grids, laws
from stepstack.planning.steplaw.grids import Columns, LossGrid
from stepstack.planning.steplaw.laws import PowerLaw
from stepstack.report import jsonl
from stepstack.report.formats import render
from stepstack.terminal import console

HEAD = ("N", "D", "lr", "bs", "loss", "held_out")  # bs in tokens: what `stepstack plan steplaw fit` reads


def keep_report(run: Run[Config]) -> None:
    """Have the report written while the run goes on."""
    cfg = run.config
    about = f"Step Law: {len(cfg.points)} language models in {len(cfg.cells)} cells, over learning rate and batch size"
    run.keep_report(write_report, f"{about}; a step is a model, its loss that of held-out text.", {"": "sweep"})


def finish(run: Run[Config]) -> None:
    """Write sweep.csv, fit.json and report.html into the run's folder, and print the tables."""
    if not run.is_main:
        return
    table = write_table(run.config, run.dir)
    fit = fit_and_check(table, run.config.window)
    fit["cpu_s"] = sum(result["cpu_s"] for result in results(run.config, run.dir))
    jsonl.write_json_atomic(run.dir / "fit.json", fit)
    out = console()
    out.print(render(tables.sweep_tables(fit), "md"), soft_wrap=True)
    out.print(f"report: {run.end_report()}\nruns:   {table}", soft_wrap=True)


def write_table(cfg: Config, folder: Path) -> Path:
    """Write a row for each point that this run has trained."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    for point, result in zip(cfg.points, results(cfg, folder), strict=True):
        tokens = point.batch * point.sequence
        writer.writerow(
            (point.cell.params, point.cell.tokens, point.lr, tokens, result["loss"], int(point.cell.held_out))
        )
    jsonl.write_text_atomic(folder / "sweep.csv", text.getvalue())
    return folder / "sweep.csv"


def results(cfg: Config, folder: Path) -> list[dict[str, float]]:
    """Loss and CPU seconds of each point."""
    return [jsonl.read_json(folder / "points" / point.name / "result.json") for point in cfg.points]


def read_cells(table: Path) -> tuple[list[LossGrid], list[LossGrid]]:
    """Cells that shape the law, and cells that check it."""
    held_out = {(float(row["N"]), float(row["D"])) for row in grids.rows(table, HEAD) if row["held_out"] == "1"}
    read = grids.read([table], Columns())
    shaping = [grid for grid in read if (grid.params, grid.tokens) not in held_out]
    return shaping, [grid for grid in read if (grid.params, grid.tokens) in held_out]


def fit_and_check(table: Path, window: float) -> dict[str, Any]:
    """Fit of the shaping cells, and a check of each law on each held-out cell.

    A check has the law's point, its excess loss and its distance from the minimum of the cell's own surface.
    """
    shaping, checking = read_cells(table)
    result = summary.summarise(shaping, window=window, draws=0)
    candidates: dict[str, PowerLaw] = {"Step Law, extrapolated": laws.STEP}
    for name, law in result["laws"].items():
        if "why" not in law:
            candidates[f"fitted here: {name}"] = PowerLaw(tuple(law["lr"]), tuple(law["batch"]))
    result["held_out"] = summary.summarise(checking, window=window, draws=0)["grids"] if checking else []
    result["checks"] = [_check(grid, name, law, window) for grid in checking for name, law in candidates.items()]
    return result


def _check(grid: LossGrid, name: str, law: PowerLaw, window: float) -> dict[str, Any]:
    lr, batch = judge.at_grid(law)(grid)
    facts = {"cell": grid.name, "law": name, "lr": lr, "batch": batch}
    facts |= {"nearest": judge.at_nearest(grid, lr, batch), "interpolated": judge.interpolated(grid, lr, batch)}
    own = fit.surface(grid, window)
    if own.convex:
        facts |= {"lr_factor": lr / own.lr, "batch_factor": batch / own.batch}
    return facts


def write_report(folder: Path) -> Path:
    """Write runs/<name>/report.html from the files in the folder. An unfinished sweep shows its curve alone."""
    history = read_history(folder)
    report = page.begin(history, {})
    if (folder / "fit.json").is_file():
        fit = jsonl.read_json(folder / "fit.json")
        shaping, checking = read_cells(folder / "sweep.csv")
        summary.add(report, fit, shaping)
        if checking:
            report.heading("Held-out cells")
            report.table("Laws on cells that they never saw", *_check_rows(fit["checks"]))
            summary.add(report, fit | {"grids": fit["held_out"]}, checking)
    page.curves(report, history)
    return page.end(report, history)


def _check_rows(checks: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    table = tables.checks_table(checks)
    return tuple(table.head), [[str(cell) for cell in row] for row in table.rows]
