"""Evaluations of a run before and after training, their table, and the run's report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from stepstack.config import digest
from stepstack.core.folder import CHANGEABLE_KEYS
from stepstack.core.run import Run
from stepstack.generation.service.config import FOLDER, TIMELINE
from stepstack.harness.answers import Sample, by_question, read
from stepstack.harness.engine import Engine
from stepstack.harness.model import folder_of, record
from stepstack.harness.store import RESULT_KEYS
from stepstack.harness.suite import evaluate_all
from stepstack.harness.task import Task
from stepstack.harness.training import card
from stepstack.planning.pipeline.timeline import PASSES, recorded
from stepstack.report import jsonl, timeline, viewer
from stepstack.report.html import Report
from stepstack.simulation.pipeline import figures
from stepstack.terminal import console

WHEN = ("before", "after")
SAMPLES_IN_TERMINAL = 6  # samples in the terminal; four times as many in the report

TIMELINE_STEPS = 12  # newest steps whose spans are drawn
STREAM_CURVES = {
    "Steps between sampling and training": ("stream/lag",),
    "Seconds that the trainer waits for rollouts": ("time/rollout",),
    "Share of the workers' time without a unit": ("stream/worker_idle",),
    "Groups ended and waiting in the buffer": ("stream/ended", "stream/waiting"),
    "Seconds until weights are ready": ("stream/publish_s",),
    "Units sampled anew, late groups, lost workers": ("stream/redispatched", "stream/late", "stream/lost_workers"),
}

Result = tuple[Path, dict[str, Any]]
Columns = Mapping[str, Mapping[str, Result]]  # moment -> task -> (folder, result)


def measure(run: Run, when: str, engine: Engine, source: str, recipe_tasks: Sequence[Task]) -> None:
    """Evaluate the config's ``evals`` with the weights that the engine has now, into runs/<name>/evals/<when>.

    ``source``: the folder or hub name of these weights.
    """
    model = run.gather([record(folder_of(source))] if run.is_main else [])[0]
    about = {"config": digest(run.config, CHANGEABLE_KEYS), "step": run.step}
    place = run.dir / "evals" / when
    if run.is_main:
        for file in place.glob("*/result.json"):
            if jsonl.read_json(file, "step")["step"] != run.step:
                shutil.rmtree(file.parent)  # the run has gone on since, by more steps
    evaluate_all(run.config.evals, engine, run, recipe_tasks=recipe_tasks, root=place, model=model, about=about)


def report_outcome(run: Run, write_report: Callable[[Path], Path]) -> None:
    """Print the before/after table and samples, as far as the run was evaluated; write its report."""
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
            out.print(sample.text)
    page = write_report(run.dir)
    write_model_cards(run)
    out.print(f"report: {page}\nmodel:  {run.dir / 'model'}", soft_wrap=True)


def write_model_cards(run: Run) -> None:
    """The card of the run's model, when all is evaluated: from here on it can be shared (`stepstack push`)."""
    if run.is_main:
        moments = {when: results(run.dir / "evals" / when) for when in WHEN}
        figures = {when: {task: result for task, (_, result) in of.items()} for when, of in moments.items() if of}
        card.write_cards(run.dir, run.config, figures)


def results(place: Path) -> dict[str, Result]:
    """Finished evaluations under a folder: task -> (folder, result), in order of the task's name."""
    loaded = [(file.parent, jsonl.read_json(file, *RESULT_KEYS)) for file in sorted(place.glob("*/result.json"))]
    return {result["task"]: (folder, result) for folder, result in loaded}


def outcome_rows(*columns: Mapping[str, Result]) -> list[tuple[str, ...]]:
    """Per task that all have: its first metric, response length and share of truncated responses, a column a moment."""
    rows = []
    for task in common(*columns):
        by_task = [column[task][1] for column in columns]
        rows += [
            (task, by_task[0]["metrics"][0]["name"], *(_figure(r["metrics"][0]) for r in by_task)),
            ("", "response tokens", *("-" if r["length"] is None else f"{r['length']:.1f}" for r in by_task)),
            ("", "truncated", *(f"{r['truncated'] / r['samples']:.3f}" for r in by_task)),
        ]
    return rows


def side_by_side(*columns: Mapping[str, Result]) -> list[tuple[Sample, ...]]:
    """The first sample of each question of the first task that all have, at each moment."""
    tasks = common(*columns)
    return list(zip(*(_first_samples(column[tasks[0]][0]) for column in columns), strict=True)) if tasks else []


def common(*columns: Mapping[str, Result]) -> list[str]:
    """Tasks that were evaluated at every moment: a run may go on with other ``evals`` than it began with."""
    return [task for task in columns[0] if all(task in column for column in columns)]


def write(
    folder: Path, curves: Mapping[str, Sequence[str]], show: Callable[[Report, Columns], None] | None = None
) -> Path:
    """runs/<name>/report.html from what stands in the folder; a run that is not over has no "after".

    runs/<name>/samples.html has every sample. ``curves``: title -> the metrics drawn together; ``show`` adds what is
    the recipe's own, in place of the table of texts.
    """
    run = jsonl.read_json(folder / "config.json", "config")
    metrics = folder / "metrics.jsonl"
    rows = list(jsonl.read(metrics)) if metrics.is_file() else []
    report = Report(run["config"]["name"])
    columns = {when: loaded for when in WHEN if (loaded := results(folder / "evals" / when))}
    if columns:
        report.table("Held-out problems", ("task", "", *columns), outcome_rows(*columns.values()))
        places = {when: [place for place, _ in column.values()] for when, column in columns.items()}
        report.link("Every sample, side by side", viewer.write(folder / "samples.html", places).name)
    if columns and show is not None:
        show(report, columns)
    report.curves("Curves", rows, curves)
    if curve := checkpoint_rows(folder):
        figures = sorted({name for row in curve for name in row} - {"step"})
        report.curves("Checkpoints", curve, {name: (name,) for name in figures})
    report.stack("Where a step's seconds go", rows, "time/")
    streamed(report, folder, rows)
    pipelined(report, folder)
    if columns and show is None:
        samples = side_by_side(*columns.values())[: 4 * SAMPLES_IN_TERMINAL]
        cells = [(pair[0].problem, pair[0].gold, *map(_marked, pair)) for pair in samples]
        report.table("Samples from the held-out problems", ("problem", "gold", *columns), cells)
    report.details("Configuration and provenance", run)
    return report.write(folder / "report.html")


def streamed(report: Report, folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Add who did what when, and the figures of the stream, where the rollouts of a run were streamed."""
    file = folder / FOLDER / TIMELINE
    if file.is_file() and (spans := timeline.last_steps(timeline.spans_of(jsonl.read(file)), TIMELINE_STEPS)):
        title = f"Workers and trainer in the last {TIMELINE_STEPS} steps; pale: the trainer waits"
        report.figures(title, [(title, timeline.draw(spans))], wide=True)
        report.table("Workers", ("worker", "units", "groups", "tokens", "tokens a unit", "busy s"), _by_worker(file))
        report.curves("Stream", rows, STREAM_CURVES)


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


def checkpoint_rows(folder: Path) -> list[dict[str, float]]:
    """Step and first figure of each task, by "task metric", of checkpoints scored by `stepstack eval --checkpoints`."""
    rows = []
    for place in sorted(folder.glob("evals/checkpoints/step-*")):
        row = {}
        for _, result in results(place).values():
            first = result["metrics"][0]
            row["step"] = float(result["step"])
            if first["value"] is not None:
                row[f"{result['task']} {first['name']}"] = first["value"]
        if row:
            rows.append(row)
    return rows


def _first_samples(folder: Path) -> list[Sample]:
    return [question[0] for question in by_question(read(folder / "samples.jsonl"))]


def _figure(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "-"
    return f"{metric['value']:.3f}" + ("" if metric["stderr"] is None else f" ± {metric['stderr']:.3f}")


def _marked(sample: Sample) -> str:
    return f"{'✓' if sample.score else '✗'} {sample.text}"
