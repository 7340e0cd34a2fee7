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
from stepstack.harness.training import page
from stepstack.harness.training.evaluated import columns_of, results
from stepstack.harness.training.history import read as read_history
from stepstack.harness.training.outcome import write_model_cards
from stepstack.report import jsonl
from stepstack.terminal import console

CLIPS_IN_REPORT, CLIP_WIDTH = 24, 128  # clips in the report, their width
LABELS = {"codec": "true clips through the VAE", "before": "the start's", "after": "generated"}


def keep_report(run: Run[Config]) -> None:
    """Have the report written while the run goes on."""
    cfg = run.config
    how = "flow matching" if cfg.preference is None else "Video-DPO"
    stages = {"vae": "VAE"} if not isinstance(cfg.data, PreparedClips) and cfg.model.start is None else {}
    clips = "drawn clips" if isinstance(cfg.data, Moving) else "clips of a folder"
    about = (
        f"Step-Video-TI2V: a DiT of {cfg.dit_shape(cfg.latents).parameters:,} parameters learns {clips} by {how}; a "
        "first frame, a prompt and a motion score become a clip."
    )
    run.keep_report(write_report, about, stages | {"": how})


def report_outcome(run: Run[Config]) -> None:
    """Print the tables; write the last state of the report that the run keeps."""
    if not run.is_main:
        return
    out = console()
    out.print(_printed("Held-out clips", heads(run.dir), rows(run.dir)))
    if facts := dsv.read_figures(run.dir):
        out.print(_printed(*dsv.table(facts)))
    write_model_cards(run)
    out.print(f"report: {run.end_report()}\nmodel:  {run.dir / 'model'}", soft_wrap=True)


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
    facts = jsonl.read_json(folder / "config.json", "config")
    cfg = TypeAdapter(Config).validate_json(json.dumps(facts["config"]), strict=True)
    history, columns = read_history(folder), columns_of(folder)
    report = page.begin(history, columns)
    if table_rows := rows(folder):
        report.table("Held-out clips", heads(folder), table_rows)
    if not isinstance(cfg.data, PreparedClips):
        for task in ("test", "swapped"):
            if items := shown(folder, task, cfg):
                title = f"{task}: first frame | generated | true, each asked for by the line below it"
                report.pictures(title, items, 3 * CLIP_WIDTH)
    page.curves(report, history)
    dsv.show(report, folder)
    return page.end(report, history)


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
