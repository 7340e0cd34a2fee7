"""What a run learned: a table and samples, before and after, on problems that no training set holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from recipes.orz.tasks import own
from stepstack.config import digest
from stepstack.core.run import FREE, Run
from stepstack.harness.engine import Engine
from stepstack.harness.model import folder_of, record
from stepstack.harness.samples import Sample, by_question, read
from stepstack.harness.suite import evaluate_all
from stepstack.report import jsonl, viewer
from stepstack.report.html import Report

if TYPE_CHECKING:
    from recipes.orz.recipe import Config

WHEN = ("before", "after")
Result = tuple[Path, dict[str, Any]]
SHOWN = 6  # sample completions in the terminal and in the report

# Title -> the metrics drawn together.
CURVES = {
    "Reward (rollouts)": ("reward", "pass_at_n"),
    "Accuracy (held out, selection set)": ("eval/accuracy",),
    "Response length, tokens": ("length", "length_rewarded", "length_unrewarded", "eval/length"),
    "Entropy, nats per token": ("actor/entropy",),
    "KL of an update, nats per token": ("actor/kl",),
    "Clip fraction": ("actor/clip_fraction",),
    "Explained variance of the critic": ("critic/explained_variance",),
    "Losses": ("actor/loss", "critic/loss"),
    "Gradient norm": ("actor/grad_norm", "critic/grad_norm"),
    "Sampler against trainer log-probability": ("actor/mismatch", "actor/mismatch_max"),
    "Truncated rollouts, groups without signal": ("truncated", "frac_zero_std"),
    "Throughput, tokens/s": ("tokens_per_s",),
}


def measure(run: Run[Config], when: str, engine: Engine, source: str) -> None:
    """Evaluate the config's ``evals`` with the weights that the engine has now, into runs/<name>/evals/<when>.

    ``source``: the folder or hub name of these weights.
    """
    model = run.gather([record(folder_of(source))] if run.is_main else [])[0]
    about = {"config": digest(run.config, FREE), "step": run.step}
    place = run.dir / "evals" / when
    evaluate_all(run.config.evals, engine, run, own=own(run.config), root=place, model=model, about=about)


def report_outcome(run: Run[Config]) -> None:
    """Print the before/after table and samples; write runs/<name>/report.html."""
    if not run.is_main:
        return
    before, after = (results(run.dir / "evals" / when) for when in WHEN)
    console = Console()
    table = Table(title=f"{run.config.name}: held-out problems, before and after")
    for column in ("task", "", *WHEN):
        table.add_column(column, justify="right" if column in WHEN else "left")
    for row in outcome_rows(before, after):
        table.add_row(*row)
    console.print(table)
    for pair in side_by_side(before, after)[:SHOWN]:
        console.print(f"[bold]{pair[0].problem}[/bold]  (answer {pair[0].gold})", highlight=False)
        for label, sample in zip(WHEN, pair, strict=True):
            mark = "right" if sample.score else "wrong"
            console.print(f"  {label} [{mark}] ", end="", markup=False, highlight=False)
            console.print(sample.text, markup=False, highlight=False)
    page = write_report(run.dir)
    console.print(f"report: {page}\nmodel:  {run.dir / 'model'}", highlight=False, soft_wrap=True)


def results(place: Path) -> dict[str, Result]:
    """Finished evaluations under a folder: task -> (folder, result), in order of the task's name."""
    found = [(file.parent, json.loads(file.read_text())) for file in sorted(place.glob("*/result.json"))]
    return {result["task"]: (folder, result) for folder, result in found}


def outcome_rows(*columns: dict[str, Result]) -> list[tuple[str, ...]]:
    """Per task: its first metric, response length and share of truncated responses, a column a moment."""
    rows = []
    for task in columns[0]:
        done = [column[task][1] for column in columns]
        rows += [
            (task, done[0]["metrics"][0]["name"], *(_figure(r["metrics"][0]) for r in done)),
            ("", "response tokens", *(f"{r['length']:.1f}" for r in done)),
            ("", "truncated", *(f"{r['truncated'] / r['samples']:.3f}" for r in done)),
        ]
    return rows


def side_by_side(*columns: dict[str, Result]) -> list[tuple[Sample, ...]]:
    """The first sample of each question of the first task, at each moment."""
    task = next(iter(columns[0]))
    return list(zip(*(_first_samples(column[task][0]) for column in columns), strict=True))


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder; a run that is not over has no "after".

    Where both are there, runs/<name>/samples.html shows every sample of both.
    """
    run = json.loads((folder / "config.json").read_text())
    metrics = folder / "metrics.jsonl"
    rows = list(jsonl.read(metrics)) if metrics.is_file() else []
    report = Report(run["config"]["name"])
    columns = {when: found for when in WHEN if (found := results(folder / "evals" / when))}
    if columns:
        report.table("Held-out problems", ("task", "", *columns), outcome_rows(*columns.values()))
        page = viewer.write(
            folder / "samples.html",
            {when: [place for place, _ in column.values()] for when, column in columns.items()},
        )
        report.link("Every sample, side by side", page.name)
    report.curves("Curves", rows, CURVES)
    if curve := checkpoint_rows(folder):
        report.curves("Checkpoints on the selection set", curve, {"Accuracy by checkpoint": ("accuracy",)})
    report.stack("Where a step's seconds go", rows, "time/")
    if columns:
        shown = side_by_side(*columns.values())[: 4 * SHOWN]
        cells = [(pair[0].problem, pair[0].gold, *map(_marked, pair)) for pair in shown]
        report.table("Samples from the held-out problems", ("problem", "gold", *columns), cells)
    report.details("Configuration and provenance", run)
    return report.write(folder / "report.html")


def checkpoint_rows(folder: Path) -> list[dict[str, float]]:
    """(step, accuracy) of the checkpoints that `stepstack eval --checkpoints` has scored."""
    rows = []
    for place in sorted(folder.glob("evals/checkpoints/step-*")):
        for _, result in results(place).values():
            rows.append({"step": float(result["step"]), "accuracy": result["metrics"][0]["value"]})
    return rows


def _first_samples(folder: Path) -> list[Sample]:
    return [question[0] for question in by_question(read(folder / "samples.jsonl"))]


def _figure(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "-"
    return f"{metric['value']:.3f}" + ("" if metric["stderr"] is None else f" ± {metric['stderr']:.3f}")


def _marked(sample: Sample) -> str:
    return f"{'✓' if sample.score else '✗'} {sample.text}"
