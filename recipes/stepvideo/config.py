"""Every key of a stepvideo config, on one page. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from data.drawn.moving import Moving
from data.prepare.config import ClipFolder, ClipOptions
from stepstack.bounds import Fraction, Magnitude, Text, Weight
from stepstack.config import Footprint, Needed, Strict
from stepstack.core.config import Muon, Optim, Schedule
from stepstack.diffusion.config import DiffusionConfig, ReconstructionWeights, SamplerConfig
from stepstack.models.video.dsv.config import ContextPlan, DsvConfig
from stepstack.models.video.grid import grid_of
from stepstack.planning.memory import FP32, PUBLISHED, Dit, Machine, Vae, cost, tokens

TASKS = ("test", "swapped", "motion", "select", "frechet")


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyVaeConfig(Strict):
    """A causal VAE, which the run trains on its clips before all else."""

    type: Literal["tiny"] = "tiny"
    """Choice of the VAE: a tiny one, trained by the run."""
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] = (2, 8, 8)
    """Frames, rows and columns of pixels that become one latent."""
    channels: PositiveInt = 16
    """Channels of a latent."""
    width: PositiveInt = 64
    """Channels of the hidden layers."""
    blocks: PositiveInt = 1
    """Residual blocks of the encoder, and of the decoder."""
    steps: PositiveInt = 500
    """Updates of the VAE's training."""
    batch: PositiveInt = 16
    """Clips of an update."""
    optim: Optim = Muon(lr=0.01, adamw_lr=3e-3, schedule=Schedule(kind="cosine", warmup=20, final=0.02))
    """Optimizer of the VAE."""
    weights: ReconstructionWeights = ReconstructionWeights()
    """Weights of the parts of the VAE's loss."""
    gate: Fraction = 0.95
    """Share of held-out reconstructions of drawn clips whose direction the checker must find, or the run stops: a VAE
    that shows no form gives a DiT whose loss looks good. Clips of your own have ``data.gate``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedVae(Strict):
    """A VAE of diffusers, by hub name or path."""

    type: Literal["wan", "dc"]
    """Choice of the VAE: diffusers' AutoencoderKLWan (wan) or AutoencoderDC (dc)."""
    path: Text
    """Hub name or local folder of the VAE."""
    subfolder: str | None = None
    """Folder in ``path`` that holds the VAE; null: ``path`` itself."""
    chunk: NonNegativeInt = 0
    """Frames of the chunks that are encoded by themselves, as Step-Video's 17; 0: no chunks."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.path,)


@dataclass(frozen=True, kw_only=True, slots=True)
class WordVectors(Strict):
    """Frozen random vectors of words, in place of the language model and of CLIP."""

    type: Literal["words"] = "words"
    """Choice of the encoders: random vectors of words."""
    widths: tuple[PositiveInt, PositiveInt] = (32, 32)
    """Width of the vectors in place of the language model, and in place of CLIP."""
    lengths: tuple[PositiveInt, PositiveInt] = (16, 8)
    """Length of the sequence in place of the language model's, and of CLIP's; what a prompt has beyond is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedEncoders(Strict):
    """Encoders of transformers, by hub name or path."""

    type: Literal["transformers"] = "transformers"
    """Choice of the encoders: published ones."""
    language: Text
    """Hub name or local folder of the language model."""
    clip: Text
    """Hub name or local folder of CLIP's text model."""
    lengths: tuple[PositiveInt, PositiveInt] = (320, 77)
    """Tokens that the language model takes, and CLIP."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type that the encoders compute in."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.language, self.clip)


@dataclass(frozen=True, kw_only=True, slots=True)
class DitConfig(Strict):
    """The DiT's shape; the defaults are Step-Video-TI2V's 30B."""

    layers: PositiveInt = 48
    """Blocks of the DiT."""
    heads: PositiveInt = 48
    """Attention heads."""
    head_width: PositiveInt = 128
    """Width of a head; the model is ``heads`` times as wide."""
    split: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 32, 32)
    """Numbers of a head that RoPE-3D turns with the frame, the row and the column; they add up to ``head_width``."""
    mlp: PositiveInt = 4
    """Width of the MLPs as a multiple of the model's."""
    with_image: bool = True
    """Whether the model is given the first frame."""
    with_motion: bool = True
    """Whether the model is given the motion score."""
    start: str | None = None
    """Folder with weights to begin from, of a trained run (config.json) or in the published layout (safetensors
    alone); null: random weights."""

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.start is None else (self.start,)

    @property
    def begins_with(self) -> tuple[str, str | None] | None:
        return None if self.start is None else (self.start, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedClips(Strict):
    """A folder of latents, which ``stepstack data`` makes."""

    type: Literal["prepared"] = "prepared"
    """Choice of the data: a prepared folder."""
    folder: Text
    """Prepared folder, from the repository."""
    source: str = ""
    """Rows of videos and captions that ``stepstack data`` reads (``data.sets.clips``)."""
    options: ClipOptions = ClipOptions()
    """How ``stepstack data`` makes clips of the videos."""
    overwrite: bool = False
    """Whether ``stepstack data`` replaces a folder that is there."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.folder,)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnClips(ClipFolder):
    """Short videos of your own with captions, from which the run makes everything: it trains its tiny VAE on them too.

    They are cut to ``frames`` frames of the one size in ``sizes``.
    """

    gate: Fraction = 0.5
    """Share of the variance of held-out clips that the VAE's reconstructions must explain (1 - squared error / squared
    distance from each clip's mean colour), or the run stops: a VAE that shows grounds alone explains none of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference(Strict):
    """Video-DPO against ``model.start``, on pairs. Of prepared data each row has a loser; of drawn data the start makes
    ``clips`` of each of ``conditions`` conditions, and the best and the worst are a pair where their tracks' errors
    differ by ``margin`` pixels, or only one keeps its colour."""

    beta: Magnitude = 500.0
    """Strength of the pull to the start in DPO's loss: the more, the nearer."""
    conditions: PositiveInt = 400
    """Conditions (prompt, first frame, motion score) of which the start makes clips, for drawn data."""
    clips: Annotated[int, Field(ge=2)] = 4
    """Clips that the start makes of a condition, for drawn data."""
    margin: Weight = 0.1
    """Pixels by which the tracks' errors of a pair must differ, for drawn data."""


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
        raise ValueError(
            f"dsv.warmup={dsv.warmup} is not less than steps={cfg.steps}: no step would be sparse, lower it"
        )
    if (size := cfg.clip_size) is not None:
        grid = grid_of(cfg.frames, *size, cfg.latents.stride)
        if all(edge >= side for edge, side in zip(dsv.cube, grid, strict=True)):
            raise ValueError(
                f"dsv.cube={dsv.cube} holds a whole clip of {grid} tokens: nothing can be left out, take a smaller one"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(DiffusionConfig):
    """Config of a Step-Video run: flow matching's keys, data, a codec, encoders of prompts, the DiT, a sampler."""

    data: Annotated[Moving | OwnClips | PreparedClips, Field(discriminator="type")]
    """Videos with their captions and motion scores."""
    vae: Annotated[TinyVaeConfig | PublishedVae, Field(discriminator="type")]
    """VAE that makes latents of pixels and back; tiny goes with data.type=moving and clips."""
    text: Annotated[WordVectors | PublishedEncoders, Field(discriminator="type")] = WordVectors()
    """Encoders of the prompts."""
    model: DitConfig = DitConfig()
    """Shape of the DiT, and the weights to begin from."""
    dsv: DsvConfig | None = None
    """Sparse attention of DSV; null: dense attention."""
    context_plan: ContextPlan | None = None
    """How the processes of ``context`` share sparse attention; given exactly with ``dsv`` and a ``context`` over 1."""
    sampler: SamplerConfig = SamplerConfig()
    """How clips are sampled."""
    frames: PositiveInt = 102
    """Frames of a sampled clip."""
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = ((544, 992), (992, 544), (768, 768))
    """Sizes (height, width) in pixels that clips are sampled in; that of the nearest shape is taken."""
    negative: str = ""
    """Prompt that guidance moves away from."""
    preference: Preference | None = None
    """Video-DPO from ``model.start``, in place of flow matching; null: flow matching."""

    def __post_init__(self) -> None:
        DiffusionConfig.__post_init__(self)
        if isinstance(self.vae, TinyVaeConfig) == isinstance(self.data, PreparedClips):
            raise ValueError(
                f"vae.type={self.vae.type} does not go with data.type={self.data.type}: tiny is trained by the run, on "
                "data.type=moving or clips; data.type=prepared takes a published one, wan or dc"
            )
        if isinstance(self.data, Moving) and self.frames != self.data.frames:
            raise ValueError(f"frames={self.frames}, but data.frames={self.data.frames}: sample what is trained")
        if isinstance(self.data, OwnClips) and len(self.sizes) != 1:
            raise ValueError(f"sizes={self.sizes}: give one, which all clips of data.type=clips are cut to")
        if (size := self.clip_size) is not None:
            try:
                grid_of(self.frames, *size, self.latents.stride)
            except ValueError as error:
                keys = "data.frames, data.size" if isinstance(self.data, Moving) else "frames, sizes"
                raise ValueError(f"{keys} and vae.patch: {error}") from None
        if self.preference is not None and isinstance(self.data, OwnClips):
            raise ValueError("preference takes drawn clips, or prepared pairs: data.type=clips has no losers")
        if self.preference is not None and (self.model.start is None or self.dsv is not None):
            raise ValueError("preference needs model.start, the folder of the model that it begins from, and dsv=null")
        check_sparse(self)
        if self.model.heads % self.context:
            raise ValueError(f"context={self.context} must divide model.heads={self.model.heads}, which it shares out")

    @property
    def task_names(self) -> tuple[str, ...]:
        """Tasks of drawn clips, whose motion is known, and of held-out clips of one's own; prepared ones have none."""
        match self.data:
            case Moving():
                return TASKS
            case OwnClips():
                return ("test",)
            case PreparedClips():
                return ()

    @property
    def clip_size(self) -> tuple[int, int] | None:
        """Height and width of the clips that the run itself turns into latents; None where they are prepared."""
        match self.data:
            case Moving(size=side):
                return side, side
            case OwnClips():
                return self.sizes[0]
            case PreparedClips():
                return None

    @property
    def packages(self) -> tuple[Needed, ...]:
        return (Needed("diffusers", "make setup EXTRAS=video"),)

    @property
    def latents(self) -> Vae:
        """VAE that makes the latents, as the planner sees it."""
        if isinstance(self.vae, TinyVaeConfig):
            return Vae(stride=self.vae.patch, channels=self.vae.channels)
        return replace(PUBLISHED[self.vae.type], chunk=self.vae.chunk)

    def dit_shape(self, vae: Vae) -> Dit:
        """DiT on the latents of a VAE, as the planner sees it."""
        dit = Dit(
            layers=self.model.layers,
            heads=self.model.heads,
            head_width=self.model.head_width,
            mlp=self.model.mlp,
            with_image=self.model.with_image,
            with_motion=self.model.with_motion,
            text_tokens=self.text.lengths,
            channels=vae.channels,
        )
        return replace(dit, text=self.text.widths) if isinstance(self.text, WordVectors) else dit

    def machine(self, shards: int) -> Machine:
        """GPUs of which ``shards`` share the weights."""
        return Machine(
            gpus=shards,
            context=self.context,
            micro=self.micro,
            ema=bool(self.dit.ema),
            precision=self.precision,
            again=self.dit.gradient_checkpointing,
        )

    def footprint(self, shards: int) -> Footprint:
        """Footprint of the DiT on the largest clips, by `stepstack plan memory`; VAE and text encoders come on top."""
        dit = self.dit_shape(self.latents)
        most = max(tokens(self.frames, *size, self.latents) for size in self.sizes)
        costs = cost(dit, most, self.machine(shards))
        copies = 4 if self.dit.ema else 3
        return Footprint(costs.states, costs.activations, FP32 * copies * dit.parameters, FP32 * dit.parameters)
