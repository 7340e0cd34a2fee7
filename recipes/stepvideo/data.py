"""The latents of a run: of drawn or own clips, made on the spot, or of a folder that `stepstack data` prepared."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.drawn.moving import Moving
from data.prepare.manifest import MANIFEST, read_manifest
from data.sets import clips as real
from data.sets.captioned import CaptionedClip, read_folder
from recipes.stepvideo.config import Config, OwnClips, PreparedClips
from recipes.stepvideo.generation.pipeline import rate
from recipes.stepvideo.model import clips_of, codec_of, encoder_of, made_by, pixels, vae_folder
from stepstack.config import ROOT, ConfigError, difference, to_dict
from stepstack.core.run import Run
from stepstack.diffusion.latents import INDEX, Latents, LatentWriter
from stepstack.models.video.prompt_encoders import CutPrompts
from stepstack.models.video.vae import VideoCodec

log = logging.getLogger(__name__)

BATCH = 64


def load_latents(run: Run[Config], codec: VideoCodec | None) -> Latents:
    cfg = run.config
    if isinstance(cfg.data, PreparedClips):
        check_options(cfg.data)
        return Latents(ROOT / cfg.data.folder, made_by(cfg, vae_folder(run)))
    assert codec is not None
    folder = run.dir / "latents"
    if run.is_main and not (folder / INDEX).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, clips_of(cfg, "train"), cfg, codec, made_by(cfg, vae_folder(run)))
    run.accelerator.wait_for_everyone()
    return Latents(folder, made_by(cfg, vae_folder(run)))


def check_options(data: PreparedClips) -> None:
    """ConfigError where the folder was prepared with other options than the config has. Where the videos lay does not
    count, nor a rate that the config leaves to them."""
    file = ROOT / data.folder / MANIFEST
    if not file.is_file():
        return  # Latents says what is missing
    there, now = read_manifest(file, real.DATA).options, to_dict(data.options)
    free = {"root", *(["fps"] if now["fps"] is None else [])}
    old, new = ({k: v for k, v in options.items() if k not in free} for options in (there, now))
    if changed := difference(old, new):
        raise ConfigError(
            f"{file} was prepared with other data.options; these differ:\n  " + "\n  ".join(changed) + "\n"
            "Prepare the data again (stepstack data), or restore the options"
        )


def write(
    folder: Path, clips: Sequence[CaptionedClip], cfg: Config, codec: VideoCodec, made: Mapping[str, Any]
) -> None:
    writer = LatentWriter(folder, encoder_of(cfg.text), made)
    for start in range(0, len(clips), BATCH):
        batch = clips[start : start + BATCH]
        latents = codec.encode(pixels(batch))
        for clip, row in zip(batch, latents, strict=True):
            writer.add(row, row[0], clip.motion, clip.prompt)
    writer.close()
    if writer.cut:
        log.warning("of %d prompts, %s", len(writer.prompts), writer.cut)


def clip_rate(cfg: Config) -> float:
    """Frames per second of a run's clips. ConfigError for a folder that was prepared without them."""
    if isinstance(cfg.data, OwnClips):
        return read_folder(cfg.data, cfg.frames, cfg.sizes[0])[2]
    if isinstance(cfg.data, Moving):
        return rate(cfg.frames)
    file = ROOT / cfg.data.folder / MANIFEST
    fps = read_manifest(file, real.DATA).options.get("fps")
    if not fps:
        raise ConfigError(f"{file} does not say the clips' frames per second: prepare the data again (stepstack data)")
    return float(fps)


def prepare_clips(cfg: Config) -> str:
    """Encode ``data.source`` into ``data.folder`` by the config's codec and encoders. ConfigError without a source."""
    assert isinstance(cfg.data, PreparedClips)
    if not cfg.data.source:
        raise ConfigError(f"data.source is empty: give a .jsonl file of {real.FORM} rows")
    out = ROOT / cfg.data.folder
    codec = codec_of(cfg.vae, out)
    manifest = real.prepare(
        *(out, cfg.data.source, cfg.data.options, codec, encoder_of(cfg.text)),
        made_by=made_by(cfg, out),
        overwrite=cfg.data.overwrite,
    )
    cut = CutPrompts(**manifest.counts["cut_captions"])
    lines = [f"{out}: {manifest.counts}", f"frames per second: {manifest.options['fps']:g}"]
    return "\n".join([*lines, f"of the captions, {cut}"] if cut else lines)
