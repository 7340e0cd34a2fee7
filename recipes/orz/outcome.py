"""What a run learned: a table and samples, before and after, on problems that no training set holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from stepstack.core.run import Run
from stepstack.evaluate import Evaluation
from stepstack.report import jsonl
from stepstack.report.html import Report
from stepstack.report.provenance import provenance

if TYPE_CHECKING:
    from recipes.orz.recipe import Config

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


def save_evaluation(run: Run[Config], when: str, result: Evaluation) -> None:
    """runs/<name>/<when>.json: scores with provenance, and every sample."""
    if not run.is_main:
        return
    samples = [
        {
            "index": rollout.prompt.problem.index,
            "problem": rollout.prompt.problem.text,
            "gold": rollout.prompt.problem.gold,
            "response": rollout.text,
            "tokens": len(rollout.ids),
            "finish": rollout.finish,
            "score": score.value,
        }
        for rollout, score in result.scored
    ]
    summary = {name: getattr(result, name) for name in ("accuracy", "stderr", "n", "k", "length", "truncated")}
    record = {"when": when, "step": run.step, **summary, "provenance": provenance(), "samples": samples}
    jsonl.write_json_atomic(run.dir / f"{when}.json", record)


def report_outcome(run: Run[Config]) -> None:
    """Print the before/after table and samples; write runs/<name>/report.html."""
    if not run.is_main:
        return
    before, after = (json.loads((run.dir / f"{when}.json").read_text()) for when in ("before", "after"))
    console = Console()
    table = Table(title=f"{run.config.name}: {after['n']} held-out problems, T={run.config.rollout.sampling.temperature}")
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for row in outcome_rows(before, after):
        table.add_row(*row)
    console.print(table)
    pairs = list(zip(before["samples"], after["samples"], strict=True))[:SHOWN]
    for old, new in pairs:
        console.print(f"[bold]{old['problem']}[/bold]  (answer {old['gold']})", highlight=False)
        for label, sample in (("before", old), ("after", new)):
            mark = "right" if sample["score"] else "wrong"
            console.print(f"  {label} [{mark}] ", end="", markup=False, highlight=False)
            console.print(sample["response"], markup=False, highlight=False)
    page = write_report(run, before, after)
    console.print(f"report: {page}\nmodel:  {run.dir / 'model'}", highlight=False, soft_wrap=True)


def outcome_rows(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        ("accuracy", *(f"{r['accuracy']:.3f} ± {r['stderr']:.3f}" for r in (before, after))),
        ("response length, tokens", *(f"{r['length']:.1f}" for r in (before, after))),
        ("truncated", *(f"{r['truncated']:.3f}" for r in (before, after))),
    ]


def write_report(run: Run[Config], before: dict[str, Any], after: dict[str, Any]) -> Path:
    rows = list(jsonl.read(run.metrics_file))
    report = Report(f"{run.config.name}")
    report.table("Before and after", ("", "before", "after"), outcome_rows(before, after))
    report.curves("Curves", rows, CURVES)
    report.stack("Where a step's seconds go", rows, "time/")
    samples = [
        (old["problem"], old["gold"], _marked(old), _marked(new))
        for old, new in list(zip(before["samples"], after["samples"], strict=True))[: 4 * SHOWN]
    ]
    report.table("Samples", ("problem", "gold", "before", "after"), samples)
    report.details("Configuration", json.loads((run.dir / "config.json").read_text()))
    return report.write(run.dir / "report.html")


def _marked(sample: dict[str, Any]) -> str:
    return f"{'✓' if sample['score'] else '✗'} {sample['response']}"
