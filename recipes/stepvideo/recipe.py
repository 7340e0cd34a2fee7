"""Step-Video-TI2V (arXiv 2503.11251, 2502.10248): a first frame, a prompt and a motion score become a clip."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.drawn import moving
from data.drawn.moving import Moving
from recipes.stepvideo.config import Config, PreparedClips, WordVectors
from recipes.stepvideo.data import clip_rate, load_latents, prepare_clips
from recipes.stepvideo.dsv import write_figures
from recipes.stepvideo.generation.engine import Ceiling, ClipEngine, PipelineFiles, open_engine, pipeline_of
from recipes.stepvideo.model import JUDGED_CLIPS, clips_of, make_codec, make_dit, start_dtype, vae_folder
from recipes.stepvideo.preference import load_pairs, prefer
from recipes.stepvideo.report import keep_report, report_outcome, write_report
from recipes.stepvideo.tasks import compare, judge, own_prompt, prompt_of, tasks
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.diffusion.sparse import check_run, enable, loop_hooks
from stepstack.generation.prompts import ClipPrompt
from stepstack.harness.metrics import clustered
from stepstack.harness.training.outcome import measure, write_model_cards
from stepstack.loops import diffusion
from stepstack.models.video.dsv.handle import Dsv

__all__ = ["Config", "describe", "open_engine", "prepare", "tasks", "train", "write_report"]


def train(run: Run[Config]) -> None:
    """The whole recipe: a VAE, latents, flow matching on them (or Video-DPO on pairs), and a look at the clips."""
    cfg = run.config
    keep_report(run)
    check_run(run, cfg.dsv)
    fps = clip_rate(cfg)
    codec = None if isinstance(cfg.data, PreparedClips) else make_codec(run)
    videos = load_latents(run, codec) if codec is None or cfg.preference is None else load_pairs(run, cfg.preference)
    run.reseed()
    build = partial(make_dit, cfg.model, videos)
    dit = run.trainable("dit", run.load(build, build), cfg.dit, cfg.steps)
    dit.stored_dtype = start_dtype(cfg.model)
    dsv = enable(run, dit, cfg.dsv)
    fit = partial(diffusion.train, run, dit=dit, videos=videos, cfg=cfg, **loop_hooks(dsv, cfg.context_plan))
    if cfg.preference is not None:
        fit = partial(prefer, run, cfg.preference, dit, videos)
    if codec is None:
        fit()
        export(run, dit, dsv, fps)
        write_model_cards(run)
        run.finish()
        return
    sampled = dit.for_sampling(build)
    engine = ClipEngine(cfg, pipeline_of(cfg, sampled, codec, run.device, fps))
    if cfg.model.start is not None:
        with dit.averaged(sampled):
            measure(run, "before", engine, str(cfg.model.start), tasks(cfg))
    fit(evaluate=lambda: select(cfg, dit, engine))
    folder = export(run, dit, dsv, fps)
    with dit.averaged(sampled):
        measure(run, "codec", Ceiling(cfg, engine.pipeline), str(folder), tasks(cfg))
        measure(run, "after", engine, str(folder), tasks(cfg))
    report_outcome(run)
    run.finish()


def export(run: Run[Config], dit: Trainable, dsv: Dsv | None, fps: float) -> Path:
    """The averaged weights, with what else a clip needs."""
    write_figures(run, dsv)
    with dit.averaged():
        return run.export("dit", run.dir / "model", PipelineFiles(run.config, vae_folder(run), dsv, fps))


def select(cfg: Config, dit: Trainable, engine: ClipEngine) -> dict[str, float]:
    """How the averaged weights do on clips that are watched; the direction counts where a drawn clip is to move."""
    if not isinstance(cfg.data, Moving):
        own = clips_of(cfg, "select")[:JUDGED_CLIPS]
        videos = sampled_clips(dit, engine, [own_prompt(clip) for clip in own])
        return means([compare(video, clip.frames()) for video, clip in zip(videos, own, strict=True)])
    clips = moving.clips(cfg.data, "select")
    videos = sampled_clips(dit, engine, [prompt_of(clip, cfg.data) for clip in clips])
    parts = [judge(video, clip, cfg.data) for video, clip in zip(videos, clips, strict=True)]
    figures = means([{name: row[name] for name in ("error", "colour", "psnr")} for row in parts])
    if right := [row["direction"] for row in parts if row["asked"]]:
        direction = clustered(right)
        figures["eval/accuracy"] = direction.value
        if direction.stderr is not None:
            figures["eval/stderr"] = direction.stderr
    return figures


def sampled_clips(dit: Trainable, engine: ClipEngine, prompts: list[ClipPrompt]) -> NDArray[np.uint8]:
    with dit.averaged(engine.pipeline.dit):
        return engine.clips(prompts, [0] * len(prompts))


def means(parts: list[dict[str, float]]) -> dict[str, float]:
    """Means over clips, under the names of their curves."""
    return {f"eval/{name}": fmean(row[name] for row in parts) for name in parts[0]}


def prepare(cfg: Config) -> str:
    if not isinstance(cfg.data, PreparedClips):
        return "the run itself makes its latents, of drawn clips and of your own: there is nothing to prepare"
    return prepare_clips(cfg)


def describe(cfg: Config) -> dict[str, Any]:
    """Numbers that follow from those of a config, for ``--dry-run``."""
    shape = cfg.model
    # Text encoders that are published have their widths in files that may not be here yet.
    assumed = "" if isinstance(cfg.text, WordVectors) else " with Step-Video's text widths"
    return {
        "DiT": f"{shape.layers} layers, {shape.heads} heads of {shape.head_width}",
        "parameters": f"{cfg.dit_shape(cfg.latents).parameters:,}{assumed}",
        "videos": f"{cfg.batch * cfg.steps} in {cfg.steps} steps of {cfg.batch}",
        "codec": cfg.vae.type,
        "sampling": f"{cfg.sampler.steps} Euler steps, guidance {cfg.sampler.guidance:g}, shift {cfg.sampler.shift:g}",
        "processes": f"{cfg.launch.processes} on {cfg.launch.nodes} nodes, {cfg.context} share a video",
        "folder": cfg.folder,
    }
