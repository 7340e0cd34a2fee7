"""Every key of a videolora config, on one page. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from data.drawn.moving import Moving
from data.prepare.config import ClipFolder
from stepstack.bounds import Text
from stepstack.config import Needed, Strict
from stepstack.core.config import AdamW, Lora, TrainableConfig
from stepstack.diffusion.config import Conditions, DiffusionConfig
from stepstack.models.video.dsv.config import DsvConfig

STEP = {"wan": (4, 16), "ltx": (8, 32)}  # frames (beside the first) and pixels that the pipelines take multiples of
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")  # folders of a pipeline
FrameRate = Annotated[float, Field(gt=0, le=1000)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pipeline(Strict):
    """A pipeline as diffusers saves it."""

    path: Text
    """Hub name or local folder of the pipeline: transformer, VAE, text model and scheduler."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the transformer's and the text model's weights, which stay as they are; the adapters are float32."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.path, *(f"{self.path}/{part}" for part in PARTS))


@dataclass(frozen=True, kw_only=True, slots=True)
class Wan(_Pipeline):
    """Wan 2.1, text to video: diffusers' WanPipeline."""

    type: Literal["wan"] = "wan"
    """Choice of the model: Wan."""
    text_tokens: PositiveInt = 512
    """Tokens that a prompt is cut or filled to: WanPipeline's max_sequence_length."""

    @property
    def family(self) -> Literal["wan"]:
        return "wan"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ltx(_Pipeline):
    """LTX-Video, text to video: diffusers' LTXPipeline."""

    type: Literal["ltx"] = "ltx"
    """Choice of the model: LTX-Video."""
    text_tokens: PositiveInt = 128
    """Tokens that a prompt is cut or filled to: LTXPipeline's max_sequence_length."""
    frame_rate: FrameRate = 25.0
    """Frames per second by which positions in time are counted: LTXPipeline's frame_rate."""

    @property
    def family(self) -> Literal["ltx"]:
        return "ltx"


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyPipeline(Strict):
    """A pipeline of random weights that the run makes from its seed: Wan's or LTX's classes in the smallest shapes."""

    type: Literal["tiny"] = "tiny"
    """Choice of the model: a tiny random one."""
    family: Literal["wan", "ltx"] = "wan"
    """Classes that it is made of: Wan's or LTX's."""
    text_tokens: PositiveInt = 32
    """Tokens that a prompt is cut or filled to; a letter is one."""
    frame_rate: FrameRate = 25.0
    """Frames per second by which LTX counts positions in time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(DiffusionConfig):
    """Config of the training of low-rank adapters for a published text-to-video model: flow matching's keys, clips, the
    model, and what is generated in the end."""

    data: Annotated[Moving | ClipFolder, Field(discriminator="type")]
    """Clips with captions: a folder of your own, or drawn ones."""
    model: Annotated[Wan | Ltx | TinyPipeline, Field(discriminator="type")]
    """Model that the adapters are trained for."""
    frames: PositiveInt = 81
    """Frames of a clip: one more than a multiple of 4 (Wan) or 8 (LTX)."""
    size: tuple[PositiveInt, PositiveInt] = (480, 832)
    """Height and width in pixels that clips are cut to: multiples of 16 (Wan) or 32 (LTX)."""
    dit: TrainableConfig = TrainableConfig(
        optim=AdamW(lr=1e-4, betas=(0.9, 0.999)),
        lora=Lora(r=32, alpha=32, targets=("to_q", "to_k", "to_v", "to_out.0")),
    )
    """How the adapters are trained; ``lora.targets`` are names of diffusers' layers, here those of all attentions."""
    dsv: DsvConfig | None = None
    """Sparse attention of DSV in training (docs/dsv.md); null: dense attention."""
    draws: PositiveInt = 8
    """Draws of noise and time for each held-out clip, the same at each evaluation, over which eval/loss is a mean."""
    samples: NonNegativeInt = 2
    """Held-out captions of which the pipeline makes clips in the end, without adapters and with them; 0: none."""
    sampler_steps: PositiveInt = 50
    """Steps of the pipeline's scheduler for these clips."""
    guidance: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """Guidance of the pipeline for these clips."""

    def __post_init__(self) -> None:
        DiffusionConfig.__post_init__(self)
        if self.dit.lora is None:
            raise ValueError("dit.lora is null: this recipe trains low-rank adapters, give their rank and targets")
        if self.context != 1:
            raise ValueError(f"context={self.context}: processes cannot share a video of these models, take 1")
        if replace(self.conditions, drop_text=0.0) != replace(Conditions(), drop_text=0.0):
            raise ValueError("conditions: these models see no first frame, so that drop_text alone can be set")
        if isinstance(self.data, Moving) and (self.data.frames, self.data.size, self.data.size) != self.shape:
            raise ValueError(
                f"frames={self.frames} and size={list(self.size)}: drawn clips have data.frames={self.data.frames} and "
                f"data.size={self.data.size}, make them the same"
            )
        every, side = STEP[self.model.family]
        if (self.frames - 1) % every or any(edge % side for edge in self.size):
            raise ValueError(
                f"{self.frames} frames of {self.size[1]} x {self.size[0]}: the model takes one frame more than a "
                f"multiple of {every}, and multiples of {side} pixels: change frames and size"
            )
        if self.dsv is not None and self.dsv.warmup >= self.steps:
            raise ValueError(f"dsv.warmup={self.dsv.warmup} is not less than steps={self.steps}: lower it")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width of a clip."""
        return self.frames, *self.size

    @property
    def packages(self) -> tuple[Needed, ...]:
        return (Needed("diffusers", "make setup EXTRAS=video"),)
