"""The curves of a video run, and held-out clips beside what was asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from rich.table import Table

from data.drawn import moving
from data.drawn.moving import Clip, Moving
from data.media.frames import gif
from recipes.stepvideo import dsv
from recipes.stepvideo.config import Config, PreparedClips
from recipes.stepvideo.model import clips_of
from recipes.stepvideo.tasks import read
from stepstack.config import ROOT
from stepstack.core.run import Run
from stepstack.harness import answers
from stepstack.harness.summary import with_error
from stepstack.harness.training.outcome import results
from stepstack.report import jsonl
from stepstack.report.html import Report
from stepstack.terminal import console

CLIPS_IN_REPORT, CLIP_WIDTH = 24, 128  # clips in the report, their width
LABELS = {"codec": "true clips through the VAE", "before": "the start's", "after": "generated"}

CURVES = {
    "Loss": ("loss",),
    "Direction as asked (held out, selection set)": ("eval/accuracy",),
    "Track error, pixels": ("eval/error",),
    "Colour kept": ("eval/colour",),
    "First frame PSNR, dB": ("eval/psnr",),
    "PSNR of held-out clips of your own, dB": ("eval/clip_psnr",),
    "Pairs in the right order (training)": ("dit/right",),
    "Gradient norm": ("dit/grad_norm",),
    "Throughput, latent tokens/s": ("tokens_per_s",),
}


def report_outcome(run: Run[Config]) -> None:
    """Print the tables; write the run's report."""
    if not run.is_main:
        return
    out = console()
    out.print(_printed("Held-out clips", heads(run.dir), rows(run.dir)))
    if facts := dsv.read_figures(run.dir):
        out.print(_printed(*dsv.table(facts)))
    out.print(f"report: {write_report(run.dir)}\nmodel:  {run.dir / 'model'}", soft_wrap=True)


def _printed(title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> Table:
    table = Table(*head, title=title)
    for row in body:
        table.add_row(*row)
    return table


def labels(folder: Path) -> list[str]:
    return [label for label in LABELS if (folder / "evals" / label).is_dir()]


def heads(folder: Path) -> tuple[str, ...]:
    return ("task", "", *(LABELS[label] for label in labels(folder)))


def rows(folder: Path) -> list[tuple[str, ...]]:
    """(task, metric, figure of each label that has it)."""
    columns = {label: results(folder / "evals" / label) for label in labels(folder)}
    names = list(
        dict.fromkeys(
            (task, m["name"]) for by_task in columns.values() for task, (_, r) in by_task.items() for m in r["metrics"]
        )
    )
    return [(task, name, *(_figure(by_task, task, name) for by_task in columns.values())) for task, name in names]


def _figure(by_task: dict[str, tuple[Path, dict[str, Any]]], task: str, name: str) -> str:
    metrics = [m for m in by_task[task][1]["metrics"] if m["name"] == name] if task in by_task else []
    return with_error(metrics[0]["value"], metrics[0]["stderr"]) if metrics else "-"


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder."""
    from recipes.stepvideo.config import Config

    facts = jsonl.read_json(folder / "config.json", "config")
    cfg = TypeAdapter(Config).validate_json(json.dumps(facts["config"]), strict=True)
    metrics = folder / "metrics.jsonl"
    steps = list(jsonl.read(metrics)) if metrics.is_file() else []
    report = Report(cfg.name)
    if table_rows := rows(folder):
        report.table("Held-out clips", heads(folder), table_rows)
    if not isinstance(cfg.data, PreparedClips):
        for task in ("test", "swapped"):
            if items := shown(folder, task, cfg):
                title = f"{task}: first frame | generated | true, each asked for by the line below it"
                report.pictures(title, items, 3 * CLIP_WIDTH)
    report.curves("Curves", steps, CURVES)
    dsv.show(report, folder, steps)
    stage = folder / "vae" / "metrics.jsonl"
    if stage.is_file():
        vae = {
            "VAE loss": ("loss",),
            "PSNR of held-out reconstructions, dB": ("eval/psnr",),
            "VAE parts": ("vae/squared", "vae/absolute"),
            "KL": ("vae/kl",),
        }
        report.curves("The VAE", list(jsonl.read(stage)), vae)
    report.details("Configuration and provenance", facts)
    return report.write(folder / "report.html")


def shown(folder: Path, task: str, cfg: Config) -> list[tuple[bytes, str]]:
    """(animated picture, caption) of the first clips of a task: first frame, generated clip, true clip."""
    by_task = results(folder / "evals" / "after")
    if task not in by_task:
        return []
    items = []
    for sample in answers.read(by_task[task][0] / "samples.jsonl")[:CLIPS_IN_REPORT]:
        if isinstance(cfg.data, Moving):
            clip = Clip.read(sample.gold)
            true, mark = moving.render(clip, cfg.data), "as asked" if sample.score else "NOT as asked"
            caption = f"{clip.prompt}, motion {clip.score:g}\n{mark}, track error {sample.parts['error']:.2f} px"
        else:
            true = clips_of(cfg, "test")[sample.index].frames()
            caption = f"{sample.problem}\n{sample.gold}, PSNR {sample.parts['clip_psnr']:.1f} dB"
        first, generated = np.repeat(true[:1], len(true), 0), read(ROOT / sample.media[0])
        items.append((gif(np.concatenate([first, generated, true], axis=2)), caption))
    return items
