"""Step-Video-TI2V (arXiv 2503.11251, 2502.10248): a first frame, a prompt and a motion score become a clip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from data import moving
from data.moving import Moving
from recipes.stepvideo import sparse
from recipes.stepvideo.data import Prepared, load_latents, prepare_clips
from recipes.stepvideo.engine import Ceiling, ClipEngine, Kit, open_engine, pipeline_of
from recipes.stepvideo.models import (
    DitConfig,
    Published,
    PublishedVae,
    TinyVaeConfig,
    Words,
    make_codec,
    make_dit,
    vae_folder,
)
from recipes.stepvideo.outcome import report_outcome, write_report
from recipes.stepvideo.pairs import Preference, load_pairs, preference_loss
from recipes.stepvideo.sampling import Wish, sample
from recipes.stepvideo.tasks import judge, own
from stepstack.config import Positive
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.diffusion.flow import SamplerConfig
from stepstack.harness.metrics import clustered
from stepstack.harness.outcome import measure
from stepstack.loops import diffusion
from stepstack.models.dsv.config import ContextPlan, DsvConfig
from stepstack.models.dsv.handle import Dsv
from stepstack.models.video_dit import VideoDiT

__all__ = ["Config", "Wish", "describe", "open_engine", "own", "prepare", "sample", "train", "write_report"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(diffusion.DiffusionConfig):
    """What Step-Video adds to flow matching: data, a codec, encoders of prompts, the DiT's shape, a sampler. ``frames``
    of a clip, its ``sizes`` (height, width) and the ``negative`` prompt are of sampling. ``preference``: the stage is
    Video-DPO, from ``model.start``. ``dsv``: null for dense attention; ``context_plan``: how ``context`` shares it."""

    data: Annotated[Moving | Prepared, Field(discriminator="type")]
    vae: Annotated[TinyVaeConfig | PublishedVae, Field(discriminator="type")]
    text: Annotated[Words | Published, Field(discriminator="type")] = Words()
    model: DitConfig = DitConfig()
    dsv: DsvConfig | None = None
    context_plan: ContextPlan | None = None
    sampler: SamplerConfig = SamplerConfig()
    frames: Positive = 102
    sizes: tuple[tuple[Positive, Positive], ...] = ((544, 992), (992, 544), (768, 768))
    negative: str = ""
    preference: Preference | None = None

    def __post_init__(self) -> None:
        diffusion.DiffusionConfig.__post_init__(self)
        if isinstance(self.vae, TinyVaeConfig) != isinstance(self.data, Moving):
            raise ValueError("a tiny VAE is trained on drawn clips: vae.type=tiny and data.type=moving go together")
        if isinstance(self.data, Moving) and self.frames != self.data.frames:
            raise ValueError(f"frames={self.frames}, but data.frames={self.data.frames}: sample what is trained")
        if self.preference is not None and (self.model.start is None or self.dsv is not None):
            raise ValueError("preference needs model.start, the folder of the model that it begins from, and dsv=null")
        sparse.fits(self)
        if self.model.heads % self.context:
            raise ValueError(f"context={self.context} must divide model.heads={self.model.heads}, which it shares out")


def train(run: Run[Config]) -> None:
    """The whole recipe: a VAE, latents, flow matching on them (or Video-DPO on pairs), and a look at the clips."""
    cfg = run.config
    sparse.check(run)
    codec = make_codec(run) if isinstance(cfg.data, Moving) else None
    videos = load_latents(run, codec) if codec is None or cfg.preference is None else load_pairs(run, cfg.preference)
    run.reseed()
    dit = run.trainable("dit", run.load(*[lambda: make_dit(cfg.model, videos)] * 2), cfg.dit, cfg.steps)
    loss = None if cfg.preference is None else preference_loss(run, cfg.preference, videos)
    dsv = sparse.enabled(run, dit)
    fit = partial(diffusion.train, run, dit=dit, videos=videos, cfg=cfg, loss=loss, **sparse.hooks(cfg, dsv))
    if codec is None:
        fit()
        export(run, dit, dsv)
        run.finish()
        return
    engine = ClipEngine(cfg, pipeline_of(cfg, dit.module, codec, run.device))
    if cfg.model.start is not None:
        measure(run, "before", engine, str(cfg.model.start), own(cfg))
    fit(evaluate=lambda: select(cfg, dit, engine))
    folder = export(run, dit, dsv)
    with dit.averaged():
        measure(run, "codec", Ceiling(cfg, engine.pipeline), str(folder), own(cfg))
        measure(run, "after", engine, str(folder), own(cfg))
    report_outcome(run)
    run.finish()


def export(run: Run[Config], dit: Trainable, dsv: Dsv | None) -> Path:
    """The averaged weights, with what else a clip needs."""
    sparse.keep(run, dsv)
    with dit.averaged():
        return run.export("dit", run.dir / "model", Kit(run.config, vae_folder(run), dsv))


def select(cfg: Config, dit: Trainable, engine: ClipEngine) -> dict[str, float]:
    """How the averaged weights do on clips that are watched; the direction counts where a clip is to move."""
    assert isinstance(cfg.data, Moving)
    clips = moving.clips(cfg.data, "select")
    with dit.averaged():
        made = engine.clips(clips, [0] * len(clips))
    parts = [judge(video, clip, cfg.data) for video, clip in zip(made, clips, strict=True)]
    right = [row["direction"] for row in parts if row["asked"]]
    found = {f"eval/{name}": fmean(row[name] for row in parts) for name in ("error", "colour", "psnr")}
    if right:
        direction = clustered(right)
        found |= {"eval/accuracy": direction.value, "eval/stderr": direction.stderr}
    return found


def prepare(cfg: Config) -> str:
    if not isinstance(cfg.data, Prepared):
        return "drawn clips are made by the run itself: there is nothing to prepare"
    return prepare_clips(cfg)


def describe(cfg: Config) -> dict[str, Any]:
    """What a run of this config would do, for ``--dry-run``."""
    import torch

    shape = cfg.model
    with torch.device("meta"):
        dit = VideoDiT(layers=shape.layers, heads=shape.heads, head_width=shape.head_width, split=shape.split)
    return {
        "DiT": f"{shape.layers} layers, {shape.heads} heads of {shape.head_width}",
        "parameters": f"{sum(p.numel() for p in dit.parameters()):,} with Step-Video's channels and text widths",
        "videos": f"{cfg.batch * cfg.steps} in {cfg.steps} steps of {cfg.batch}",
        "codec": cfg.vae.type,
        "sampling": f"{cfg.sampler.steps} Euler steps, guidance {cfg.sampler.guidance:g}, shift {cfg.sampler.shift:g}",
        "processes": f"{cfg.launch.processes} on {cfg.launch.nodes} nodes, {cfg.context} share a video",
        "folder": Run.folder(cfg),
    }
