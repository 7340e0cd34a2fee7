"""The latents of a run: of drawn clips, made on the spot, or of a folder that `stepstack data` prepared."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data import clips as real
from data import moving
from data.clips import Options
from data.moving import Clip, Moving
from recipes.stepvideo.models import codec_of, encoder_of, pixels
from stepstack.config import ROOT, ConfigError, Strict
from stepstack.core.run import Run
from stepstack.diffusion.latents import INDEX, Latents, LatentWriter
from stepstack.models.video_vae import VideoCodec

if TYPE_CHECKING:
    from recipes.stepvideo.recipe import Config

BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared(Strict):
    """A folder of latents, which ``stepstack data`` makes of ``source``: rows of videos and captions
    (``data.clips``)."""

    type: Literal["prepared"] = "prepared"
    folder: str
    source: str = ""
    options: Options = Options()
    overwrite: bool = False


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


def prepare_clips(cfg: Config) -> str:
    """Encode ``data.source`` into ``data.folder`` by the config's codec and encoders. ConfigError without a source."""
    assert isinstance(cfg.data, Prepared)
    if not cfg.data.source:
        raise ConfigError(f"data.source is empty: give a .jsonl file of {real.FORM} rows")
    out = ROOT / cfg.data.folder
    codec = codec_of(cfg.vae, out)
    made = real.prepare(
        out, cfg.data.source, cfg.data.options, codec, encoder_of(cfg.text), overwrite=cfg.data.overwrite
    )
    return f"{out}: {made.counts}"
