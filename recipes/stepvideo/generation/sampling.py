"""`stepstack sample`: a picture, a prompt and a motion score to a GIF and an MP4."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from data.media import frames
from data.media.images import read_image
from recipes.stepvideo.config import Config
from recipes.stepvideo.generation.engine import open_pipeline
from recipes.stepvideo.generation.pipeline import ClipRequest, fitted
from recipes.stepvideo.model import frames as as_frames
from stepstack.config import ConfigError
from stepstack.core.processes import LaunchedProcesses
from stepstack.harness.model import folder_of
from stepstack.report import jsonl
from stepstack.terminal import console

MIN_SHOWN_SIDE = 256  # a small clip's shorter side is scaled to about so many pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleArgs:
    """``model``: a folder; the run's own if None. ``crop``: whether a picture of another shape may be cut. ``out``: a
    file name without ending."""

    image: Path
    prompt: str
    motion: float = 5.0
    seed: int = 0
    model: str | None = None
    crop: bool = False
    out: Path = Path("clip")


def sample(cfg: Config, args: SampleArgs) -> list[Path]:
    """Write ``out``.gif and ``out``.mp4. ConfigError or DataError for what cannot be made a clip of."""
    request = clip_request(cfg, args)
    folder = folder_of(args.model or str(cfg.folder / "model"))
    pipeline = open_pipeline(cfg, folder, LaunchedProcesses(cfg.launch).device)
    bar = console(stderr=True)
    if cut := pipeline.encoder.cut([request.prompt]):
        bar.print(f"the prompt is too long: {cut}")
    steps = track(pipeline.steps([request]), "sampling", total=cfg.sampler.steps, console=bar, transient=True)
    *_, latents = steps
    clip = as_frames(pipeline.codec.decode(latents))[0]
    scale = max(1, round(MIN_SHOWN_SIDE / min(clip.shape[1:3])))
    gif = args.out.with_suffix(".gif")
    jsonl.write_bytes_atomic(gif, frames.gif(clip, pipeline.fps, scale))
    return [gif, frames.write_mp4(args.out.with_suffix(".mp4"), clip, pipeline.fps, scale)]


def clip_request(cfg: Config, args: SampleArgs) -> ClipRequest:
    if not args.prompt.strip():
        raise ConfigError("--prompt is empty: say what happens in the clip")
    if not math.isfinite(args.motion) or args.motion < 0:
        raise ConfigError(f"--motion {args.motion}: must be 0 or more; 2 is calm, 5 usual, 20 wild")
    return ClipRequest(
        args.prompt,
        fitted(cfg.sizes, np.asarray(read_image(args.image)), str(args.image), args.crop),
        args.motion,
        args.seed,
    )
