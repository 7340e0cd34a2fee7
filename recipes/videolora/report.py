"""The curves of a run, and held-out captions as the pipeline shows them without its adapters and with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.media.frames import gif
from data.sets.captioned import captioned
from recipes.videolora.config import Config
from stepstack.core.run import Run
from stepstack.harness.training import page
from stepstack.harness.training.history import read as read_history
from stepstack.models.video.published import Published
from stepstack.report import jsonl
from stepstack.terminal import console

CLIPS, CAPTIONS = "clips", "captions.json"
CLIP_WIDTH = 256  # width of a clip in the report
FPS = 8  # frames per second at which clips are shown


def keep_report(run: Run[Config]) -> None:
    """Have the report written while the run goes on."""
    family = run.config.model.family
    about = f"Low-rank adapters of {family} learn the clips of a folder by flow matching, others are held out."
    run.keep_report(write_report, about, {"": "adapters"})


def write_clips(run: Run[Config], pipeline: Published, lora: Path) -> None:
    """Write runs/<name>/clips, if those of this step are not there: of held-out captions the pipeline's clips without
    adapters, with them, and the true ones, side by side."""
    cfg = run.config
    file = run.dir / CLIPS / CAPTIONS
    if not cfg.samples or not run.is_main or (file.is_file() and jsonl.read_json(file, "step")["step"] == run.step):
        return
    held_out = captioned(cfg.data, "select", cfg.frames, cfg.size)[: cfg.samples]
    prompts = [clip.prompt for clip in held_out]
    height, width = cfg.size
    how: dict[str, Any] = {"height": height, "width": width, "num_frames": cfg.frames}
    how |= {"num_inference_steps": cfg.sampler_steps, "guidance_scale": cfg.guidance}
    before, after = (pipeline.generate(prompts, folder, run.device, **how) for folder in (None, lora))
    for place, (clip, *made) in enumerate(zip(held_out, before, after, strict=True)):
        picture = gif(np.concatenate([*made, clip.frames()], axis=2), FPS)
        jsonl.write_bytes_atomic(run.dir / CLIPS / f"{place:02d}.gif", picture)
    jsonl.write_json_atomic(file, {"captions": prompts, "step": run.step})


def report_outcome(run: Run[Config]) -> None:
    """Print what was learned; write the run's report."""
    if not run.is_main:
        return
    losses = [row["eval/loss"] for row in jsonl.read(run.metrics_file) if "eval/loss" in row]
    out = console()
    out.print(f"loss of held-out clips: {losses[0]:.4f} -> {losses[-1]:.4f}")
    out.print(f"report: {run.end_report()}\nadapters: {run.dir / 'lora'}", soft_wrap=True)


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder."""
    history = read_history(folder)
    report = page.begin(history, {})
    if (folder / CLIPS / CAPTIONS).is_file():
        captions = jsonl.read_json(folder / CLIPS / CAPTIONS, "captions")["captions"]
        items = [((folder / CLIPS / f"{place:02d}.gif").read_bytes(), text) for place, text in enumerate(captions)]
        report.pictures("Held-out captions: without adapters | with them | true", items, 3 * CLIP_WIDTH)
    page.curves(report, history)
    return page.end(report, history)
