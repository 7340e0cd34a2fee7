"""The latents of a run: of its training clips and of those that are held out, made by the pipeline's own parts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from data.sets.captioned import CaptionedClip, captioned
from recipes.videolora.config import Config
from stepstack.config import to_dict
from stepstack.core.run import Run
from stepstack.diffusion.batch import LatentMicroBatch, collate, noised
from stepstack.diffusion.latents import INDEX, Latents, LatentWriter
from stepstack.diffusion.sample import derive_seed
from stepstack.models.video.published import Published

log = logging.getLogger(__name__)

SPLITS = {"train": "latents", "select": "latents-held-out"}  # split -> folder in the run's


def load_latents(run: Run[Config], pipeline: Published) -> tuple[Latents, Latents]:
    """(clips that are trained on, clips that are held out), encoded by the first process where they are not there."""
    made_by = {"model": to_dict(run.config.model), "shape": list(run.config.shape)}
    folders = {split: run.dir / name for split, name in SPLITS.items()}
    if run.is_main and not all((folder / INDEX).is_file() for folder in folders.values()):
        cfg = run.config
        clips = {split: captioned(cfg.data, split, cfg.frames, cfg.size) for split in ("train", "select")}
        for split, folder in folders.items():
            shutil.rmtree(folder, ignore_errors=True)
            write(folder, clips[split], pipeline, made_by, run.device)
    run.accelerator.wait_for_everyone()
    train, held_out = (Latents(folder, made_by) for folder in folders.values())
    return train, held_out


def write(
    folder: Path, clips: Sequence[CaptionedClip], pipeline: Published, made_by: dict, device: torch.device
) -> None:
    """Encode clips one by one by the pipeline's VAE, then their captions by its text model."""
    codec = pipeline.codec(device)
    writer = LatentWriter(folder, pipeline.prompts(device), made_by)
    for clip in track(clips, "encoding", transient=True):
        video = torch.from_numpy(np.ascontiguousarray(clip.frames()))[None].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        [latents] = codec.encode(video)
        writer.add(latents, latents[0], clip.motion, clip.prompt)
    writer.close()
    if writer.cut:
        log.warning("of %d captions, %d are cut by the text model", len(writer.prompts), writer.cut.language)


def held_out_batches(run: Run[Config], videos: Latents) -> list[LatentMicroBatch]:
    """Every held-out clip at ``draws`` draws of noise and time, with its caption; the same at each call."""
    cfg = replace(run.config, conditions=replace(run.config.conditions, drop_text=0.0))
    samples = [
        noised(cfg, video, videos.empty, derive_seed("held out", row, draw))
        for row, video in enumerate(videos)
        for draw in range(cfg.draws)
    ]
    return [collate(samples[start : start + cfg.micro], run.device, 1) for start in range(0, len(samples), cfg.micro)]
