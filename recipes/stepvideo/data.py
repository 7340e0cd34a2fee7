"""The latents of a run: of drawn clips, made on the spot, or of a folder that `stepstack data` prepared."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data import moving
from data.moving import Clip, Moving
from recipes.stepvideo.models import encoder_of, pixels
from stepstack.config import ROOT, Strict
from stepstack.core.run import Run
from stepstack.diffusion.latents import INDEX, Latents, LatentWriter
from stepstack.models.video_vae import VideoCodec

if TYPE_CHECKING:
    from recipes.stepvideo.recipe import Config

BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared(Strict):
    """A folder of latents; ``stepstack data`` makes it of ``source`` (data/clips.py)."""

    type: Literal["prepared"] = "prepared"
    folder: str


def load_latents(run: Run[Config], codec: VideoCodec | None) -> Latents:
    cfg = run.config
    if isinstance(cfg.data, Prepared):
        return Latents(ROOT / cfg.data.folder)
    assert codec is not None
    folder = run.dir / "latents"
    if run.is_main and not (folder / INDEX).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, moving.clips(cfg.data, "train"), cfg, cfg.data, codec)
    run.accelerator.wait_for_everyone()
    return Latents(folder)


def write(folder: Path, clips: list[Clip], cfg: Config, data: Moving, codec: VideoCodec) -> None:
    writer = LatentWriter(folder, encoder_of(cfg.text))
    for start in range(0, len(clips), BATCH):
        some = clips[start : start + BATCH]
        latents = codec.encode(pixels(some, data))
        for clip, row in zip(some, latents, strict=True):
            writer.add(row, row[0], clip.score, clip.prompt)
    writer.close()
