"""What a run learned: a table and samples, before and after, on problems that no training set holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from recipes.orz.data import load_prompts
from recipes.orz.models import Pretrained, make_generator, weights_of
from recipes.orz.reward import make_reward
from stepstack.config import digest
from stepstack.core.run import Run
from stepstack.evaluate import Evaluation, evaluate
from stepstack.report import jsonl
from stepstack.report.html import Report
from stepstack.report.provenance import provenance
from stepstack.rl.types import Alone

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
    if run.is_main:
        jsonl.write_json_atomic(run.dir / f"{when}.json", as_record(result, when=when, step=run.step))


def as_record(result: Evaluation, **more: Any) -> dict[str, Any]:
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
    return {**more, **summary, "provenance": provenance(), "samples": samples}


def report_outcome(run: Run[Config]) -> None:
    """Print the before/after table and samples; write runs/<name>/report.html."""
    if not run.is_main:
        return
    before, after = (_read(run.dir, when) for when in ("before", "after"))
    console = Console()
    table = Table(
        title=f"{run.config.name}: {after['n']} held-out problems, T={run.config.rollout.sampling.temperature}"
    )
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
    page = write_report(run.dir)
    console.print(f"report: {page}\nmodel:  {run.dir / 'model'}", highlight=False, soft_wrap=True)


def outcome_rows(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        ("accuracy", *(f"{r['accuracy']:.3f} ± {r['stderr']:.3f}" for r in (before, after))),
        ("response length, tokens", *(f"{r['length']:.1f}" for r in (before, after))),
        ("truncated", *(f"{r['truncated']:.3f}" for r in (before, after))),
    ]


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder; a run that is not over has no "after"."""
    record = json.loads((folder / "config.json").read_text())
    metrics = folder / "metrics.jsonl"
    rows = list(jsonl.read(metrics)) if metrics.is_file() else []
    report = Report(record["config"]["name"])
    done = [when for when in ("before", "after") if (folder / f"{when}.json").is_file()]
    results = [_read(folder, when) for when in done]
    if len(results) == 2:
        report.table("Before and after", ("", *done), outcome_rows(*results))
    report.curves("Curves", rows, CURVES)
    report.stack("Where a step's seconds go", rows, "time/")
    samples = list(zip(*(result["samples"] for result in results), strict=True))[: 4 * SHOWN]
    cells = [(versions[0]["problem"], versions[0]["gold"], *map(_marked, versions)) for versions in samples]
    report.table("Samples from the held-out problems", ("problem", "gold", *done), cells)
    report.details("Configuration and provenance", record)
    return report.write(folder / "report.html")


def evaluate_model(cfg: Config, folder: Path, samples: int, split: str = "test") -> str:
    """Score a Hugging Face folder on a split of the config's data; returns a line to print.

    The result with every sample goes to ``<folder>/eval-<split>.json``.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model: train first (make train RECIPE={cfg.name}) or give --model")
    torch.set_num_threads(cfg.launch.threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = make_generator(cfg, weights_of(Pretrained(path=str(folder))), tokenizer, str(folder), device)
    sampling = cfg.rollout.sampling.but(n=samples, seed=cfg.seed + 1)
    prompts = getattr(load_prompts(cfg, tokenizer), split)
    result = evaluate(generator, prompts, sampling, make_reward(cfg.reward), Alone())
    file = folder / f"eval-{split}.json"
    jsonl.write_json_atomic(file, as_record(result, config=digest(cfg), model=str(folder)))
    return (
        f"{cfg.name} {split}: accuracy {result.accuracy:.3f} ± {result.stderr:.3f} (n={result.n}, avg@{result.k}, "
        f"T={sampling.temperature}), {result.length:.1f} tokens -> {file}"
    )


def _read(folder: Path, when: str) -> dict[str, Any]:
    return json.loads((folder / f"{when}.json").read_text())


def _marked(sample: dict[str, Any]) -> str:
    return f"{'✓' if sample['score'] else '✗'} {sample['response']}"
