"""Every key of a stepvideo config, on one page. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from data.drawn.moving import Moving
from data.prepare.config import ClipOptions
from stepstack.config import Strict
from stepstack.core.config import Muon, Optim, Schedule
from stepstack.diffusion.config import DiffusionConfig, ReconstructionWeights, SamplerConfig
from stepstack.models.video.dsv.config import ContextPlan, DsvConfig
from stepstack.models.video.grid import grid_of


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyVaeConfig(Strict):
    """A causal VAE and its training on the drawn clips. ``gate``: the share of held-out reconstructions whose direction
    the checker must find, or the run stops: a VAE that shows no form gives a DiT whose loss looks good."""

    type: Literal["tiny"] = "tiny"
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] = (2, 8, 8)
    channels: PositiveInt = 16
    width: PositiveInt = 64
    blocks: PositiveInt = 1
    steps: PositiveInt = 500
    batch: PositiveInt = 16
    optim: Optim = Muon(lr=0.01, adamw_lr=3e-3, schedule=Schedule(kind="cosine", warmup=20, final=0.02))
    weights: ReconstructionWeights = ReconstructionWeights()
    gate: Annotated[float, Field(ge=0, le=1)] = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedVae(Strict):
    """diffusers' AutoencoderKLWan (wan) or AutoencoderDC (dc), by hub name or path. ``chunk``: frames of chunks that
    are encoded by themselves, as Step-Video's 17; 0: none."""

    type: Literal["wan", "dc"]
    path: str
    subfolder: str | None = None
    chunk: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class WordVectors(Strict):
    """Frozen random vectors of words, in place of the language model and of CLIP."""

    type: Literal["words"] = "words"
    widths: tuple[PositiveInt, PositiveInt] = (32, 32)
    lengths: tuple[PositiveInt, PositiveInt] = (16, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedEncoders(Strict):
    """Encoders of transformers, by hub name or path, and how many tokens they take."""

    type: Literal["transformers"] = "transformers"
    language: str
    clip: str
    lengths: tuple[PositiveInt, PositiveInt] = (320, 77)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


@dataclass(frozen=True, kw_only=True, slots=True)
class DitConfig(Strict):
    """The DiT's shape; the defaults are Step-Video-TI2V's 30B. ``start``: a folder with weights to begin from, of a
    trained run (config.json) or in the published layout (safetensors alone)."""

    layers: PositiveInt = 48
    heads: PositiveInt = 48
    head_width: PositiveInt = 128
    split: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 32, 32)
    mlp: PositiveInt = 4
    with_image: bool = True
    with_motion: bool = True
    start: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedClips(Strict):
    """A folder of latents, which ``stepstack data`` makes of ``source``: rows of videos and captions
    (``data.sets.clips``)."""

    type: Literal["prepared"] = "prepared"
    folder: str
    source: str = ""
    options: ClipOptions = ClipOptions()
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference(Strict):
    """Video-DPO at ``beta`` against ``model.start``, on pairs. Of prepared data each row has a loser; of drawn data
    the start makes ``clips`` of each of ``conditions`` conditions, and the best and the worst are a pair where their
    tracks' errors differ by ``margin`` pixels, or only one keeps its colour."""

    beta: Annotated[float, Field(gt=0)] = 500.0
    conditions: PositiveInt = 400
    clips: Annotated[int, Field(ge=2)] = 4
    margin: Annotated[float, Field(ge=0)] = 0.1


def check_sparse(cfg: Config) -> None:
    """ValueError for settings with which nothing could ever be sparse, or which do not go together."""
    dsv, context_plan = cfg.dsv, cfg.context_plan
    if (context_plan is not None) != (dsv is not None and cfg.context > 1):
        raise ValueError(
            f"context_plan is {'missing' if context_plan is None else 'given'}: it says how processes that share a "
            f"video share sparse attention: give it with dsv and a context over 1 (here {cfg.context}), else null"
        )
    if context_plan is not None and context_plan.cluster.ranks != cfg.context:
        raise ValueError(f"context_plan.cluster.ranks={context_plan.cluster.ranks} must be context={cfg.context}")
    if dsv is None:
        return
    if dsv.warmup >= cfg.steps:
        raise ValueError(f"dsv.warmup={dsv.warmup} is not less than steps={cfg.steps}: no step would be sparse")
    if isinstance(cfg.data, Moving) and isinstance(cfg.vae, TinyVaeConfig):
        grid = grid_of(cfg.frames, cfg.data.size, cfg.data.size, cfg.vae.patch)
        if all(edge >= side for edge, side in zip(dsv.cube, grid, strict=True)):
            raise ValueError(f"dsv.cube={dsv.cube} holds a whole clip of {grid} tokens: nothing can be left out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(DiffusionConfig):
    """What Step-Video adds to flow matching: data, a codec, encoders of prompts, the DiT's shape, a sampler. ``frames``
    of a clip, its ``sizes`` (height, width) and the ``negative`` prompt are of sampling. ``preference``: the stage is
    Video-DPO, from ``model.start``. ``dsv``: null for dense attention; ``context_plan``: how ``context`` shares it."""

    data: Annotated[Moving | PreparedClips, Field(discriminator="type")]
    vae: Annotated[TinyVaeConfig | PublishedVae, Field(discriminator="type")]
    text: Annotated[WordVectors | PublishedEncoders, Field(discriminator="type")] = WordVectors()
    model: DitConfig = DitConfig()
    dsv: DsvConfig | None = None
    context_plan: ContextPlan | None = None
    sampler: SamplerConfig = SamplerConfig()
    frames: PositiveInt = 102
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = ((544, 992), (992, 544), (768, 768))
    negative: str = ""
    preference: Preference | None = None

    def __post_init__(self) -> None:
        DiffusionConfig.__post_init__(self)
        if isinstance(self.vae, TinyVaeConfig) != isinstance(self.data, Moving):
            raise ValueError("a tiny VAE is trained on drawn clips: vae.type=tiny and data.type=moving go together")
        if isinstance(self.data, Moving) and self.frames != self.data.frames:
            raise ValueError(f"frames={self.frames}, but data.frames={self.data.frames}: sample what is trained")
        if self.preference is not None and (self.model.start is None or self.dsv is not None):
            raise ValueError("preference needs model.start, the folder of the model that it begins from, and dsv=null")
        check_sparse(self)
        if self.model.heads % self.context:
            raise ValueError(f"context={self.context} must divide model.heads={self.model.heads}, which it shares out")
