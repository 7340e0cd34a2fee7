"""Evaluations of a run before and after training, their table, and the run's report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from stepstack.config import digest
from stepstack.core.folder import CHANGEABLE_KEYS
from stepstack.core.run import Run
from stepstack.generation.service.config import FOLDER, TIMELINE
from stepstack.harness.answers import Sample
from stepstack.harness.engine import Engine
from stepstack.harness.model import folder_of, record
from stepstack.harness.suite import evaluate_all
from stepstack.harness.task import Task
from stepstack.harness.training import card, page
from stepstack.harness.training.evaluated import WHEN, Columns, columns_of, outcome_rows, results, side_by_side
from stepstack.harness.training.history import read as read_history
from stepstack.planning.pipeline.timeline import PASSES, recorded
from stepstack.report import jsonl, timeline, viewer
from stepstack.report.html import Report
from stepstack.simulation.pipeline import figures
from stepstack.terminal import console

SAMPLES_IN_TERMINAL = 6  # samples in the terminal; twice as many in the report
LONGEST = 500  # characters of a sample in the terminal
TIMELINE_STEPS = 12  # newest steps whose spans are drawn


def measure(
    run: Run, when: str, engine: Engine, source: str, recipe_tasks: Sequence[Task], evals: Sequence[str] | None = None
) -> None:
    """Evaluate ``evals``, those of the config by default, with the weights that the engine has now, into
    runs/<name>/evals/<when>.

    ``source``: the folder or hub name of these weights.
    """
    model = run.gather([record(folder_of(source))] if run.is_main else [])[0]
    about = {"config": digest(run.config, CHANGEABLE_KEYS), "step": run.step}
    place = run.dir / "evals" / when
    if run.is_main:
        for file in place.glob("*/result.json"):
            if jsonl.read_json(file, "step")["step"] != run.step:
                shutil.rmtree(file.parent)  # the run has gone on since, by more steps
    names = run.config.evals if evals is None else evals
    evaluate_all(names, engine, run, recipe_tasks=recipe_tasks, root=place, model=model, about=about)


def report_outcome(run: Run) -> None:
    """Print the before/after table and samples, as far as the run was evaluated; write the last state of the report
    that it keeps."""
    if not run.is_main:
        return
    before, after = (results(run.dir / "evals" / when) for when in WHEN)
    out = console()
    table = Table(title=f"{run.config.name}: held-out problems, before and after")
    for column in ("task", "", *WHEN):
        table.add_column(column, justify="right" if column in WHEN else "left")
    for row in outcome_rows(before, after):
        table.add_row(*row)
    if table.rows:
        out.print(table)
    for pair in side_by_side(before, after)[:SAMPLES_IN_TERMINAL]:
        out.print(Text.assemble((pair[0].problem, "bold"), f"  (answer {pair[0].gold})"))
        for label, sample in zip(WHEN, pair, strict=True):
            mark = "right" if sample.score else "wrong"
            out.print(f"  {label} [{mark}] ", end="")
            out.print(sample.text if len(sample.text) <= LONGEST else f"{sample.text[:LONGEST]} ...")
    write_model_cards(run)
    out.print(f"report: {run.end_report()}\nmodel:  {run.dir / 'model'}", soft_wrap=True)


def write_model_cards(run: Run) -> None:
    """The card of the run's model, when all is evaluated: from here on it can be shared (`stepstack push`)."""
    if run.is_main:
        moments = {when: results(run.dir / "evals" / when) for when in WHEN}
        figures = {when: {task: result for task, (_, result) in of.items()} for when, of in moments.items() if of}
        card.write_cards(run.dir, run.config, figures)


def write(folder: Path, show: Callable[[Report, Columns], None] | None = None) -> Path:
    """runs/<name>/report.html from what stands in the folder; a run that is not over has no "after".

    runs/<name>/samples.html has every sample. ``show`` adds what is the recipe's own, in place of the table of texts.
    """
    history, columns = read_history(folder), columns_of(folder)
    report = page.begin(history, columns)
    if columns:
        report.table("Held-out problems", ("task", "", *columns), outcome_rows(*columns.values()))
        places = {when: [place for place, _ in column.values()] for when, column in columns.items()}
        report.link("Every sample, side by side", viewer.write(folder / "samples.html", places).name)
        if show is not None:
            show(report, columns)
        else:
            samples = side_by_side(*columns.values())[: 2 * SAMPLES_IN_TERMINAL]
            cells = [(pair[0].problem, pair[0].gold, *map(_marked, pair)) for pair in samples]
            report.table("Samples from the held-out problems", ("problem", "gold", *columns), cells, "samples")
    page.curves(report, history)
    streamed(report, folder)
    pipelined(report, folder)
    return page.end(report, history)


def streamed(report: Report, folder: Path) -> None:
    """Add who did what when, and what each worker made, where the rollouts of a run were streamed."""
    file = folder / FOLDER / TIMELINE
    if file.is_file() and (spans := timeline.last_steps(timeline.spans_of(jsonl.read(file)), TIMELINE_STEPS)):
        title = f"Workers and trainer in the last {TIMELINE_STEPS} steps; pale: the trainer waits"
        report.figures(title, [(title, timeline.draw(spans))], wide=True)
        report.table("Workers", ("worker", "units", "groups", "tokens", "tokens a unit", "busy s"), _by_worker(file))


def pipelined(report: Report, folder: Path) -> None:
    """Add the passes of the last batch that was kept of each stage whose model was cut over a pipeline."""
    for file in (folder / PASSES, *sorted(folder.glob(f"*/{PASSES}"))):
        if file.is_file():
            kept = jsonl.read_json(file, "step", "measured", "simulated")
            where = "" if file.parent == folder else f" of {file.parent.name}"
            title = f"Passes of a pipeline's ranks in step {kept['step']}{where}, measured, and as the plan has them"
            both = [(times, figures.gantt({"": recorded(kept[times])}, times)) for times in ("measured", "simulated")]
            report.figures(title, both, wide=True)


def _by_worker(file: Path) -> list[tuple[str, ...]]:
    made: dict[str, list[dict[str, Any]]] = {}
    for row in jsonl.read(file):
        if row["what"] == "generate":
            made.setdefault(row["who"], []).append(row)
    return [
        (
            name,
            f"{len(rows)}",
            f"{sum(row['groups'] for row in rows)}",
            f"{sum(row['tokens'] for row in rows)}",
            f"{sum(row['tokens'] for row in rows) / len(rows):.0f}",
            f"{sum(row['ended'] - row['began'] for row in rows):.1f}",
        )
        for name, rows in sorted(made.items())
    ]


def _marked(sample: Sample) -> str:
    return f"{'✓' if sample.score else '✗'} {sample.text}"
