"""Cost of a Step-Video DiT: tokens, parameters, FLOPs, memory and time of a step. Pure arithmetic, no torch.

A multiply-add counts as two FLOPs, and the backward pass of attention as twice its forward pass. Memory is that of one
GPU: its shares of parameters, gradients and two moments in float32 (and of the moving average), two gathered blocks,
and what the backward pass needs of the forward pass. The needs of the allocator, of communication and of the gradients
of activations come on top. In bf16 the weights are cast once, as FSDP2 does it. `stepstack bench video-memory` compares
these figures with a measured tiny DiT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stepstack.config import Strict

BYTES = {"no": 4, "bf16": 2}  # bytes of a number in the forward pass, by precision
FP32 = 4
WAVES = 256
# Numbers of [tokens, width] tensors that the backward pass keeps: in a block beside its input and the MLP's two inner
# tensors; in a block around QK-norm and rotation, always in float32; after the last block. Then the same for text.
BLOCK, BLOCK_FP32, LAST = 16, 6, 3
TEXT, TEXT_FP32 = 2, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Dit(Strict):
    """The defaults are Step-Video-TI2V's 30B, of 64 latent channels and its own encoders."""

    layers: PositiveInt = 48
    heads: PositiveInt = 48
    head_width: PositiveInt = 128
    channels: PositiveInt = 64
    text: tuple[PositiveInt, PositiveInt] = (6144, 1024)
    text_tokens: tuple[PositiveInt, PositiveInt] = (320, 77)
    mlp: PositiveInt = 4
    with_image: bool = True
    with_motion: bool = True

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    @property
    def block(self) -> int:
        """Parameters of one block."""
        d = self.width
        return 8 * d * d + 2 * self.mlp * d * d + 4 * d + 4 * self.head_width + 6 * d

    @property
    def parameters(self) -> int:
        d = self.width
        embedder = (WAVES * d + d) + (d * d + d)
        text = (self.text[0] * d + d) + (d * d + d) + (self.text[1] * d + d)
        ends = (self.inputs * d + d) + 2 * d + (d * self.channels + self.channels)
        return self.layers * self.block + embedder * self.scalars + 6 * d * d + 6 * d + text + ends

    @property
    def inputs(self) -> int:
        """Channels of a token at the model's input."""
        return self.channels * (2 if self.with_image else 1)

    @property
    def scalars(self) -> int:
        """Number of scalar conditions: time, and motion if the model takes it."""
        return 2 if self.with_motion else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Vae(Strict):
    """``stride``: frames, and pixels in height and width, of a latent voxel; a first frame is one by itself. ``chunk``:
    frames that are encoded by themselves; 0: all together."""

    stride: tuple[PositiveInt, PositiveInt, PositiveInt]
    channels: PositiveInt
    chunk: int = 0


STEP_VIDEO = Vae(stride=(8, 16, 16), channels=64, chunk=17)
PUBLISHED = {"wan": Vae(stride=(4, 8, 8), channels=16), "dc": Vae(stride=(1, 32, 32), channels=32)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine(Strict):
    """``gpus`` share the weights, and ``context`` of them each video's tokens; ``tflops`` of one at its peak in
    bfloat16; ``mfu``: the share of it reached by a forward and backward pass, recomputation not counted as work.
    ``again``: whether blocks are recomputed (gradient checkpointing)."""

    gpus: PositiveInt = 128
    context: PositiveInt = 1
    tflops: Annotated[float, Field(gt=0)] = 989.0
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.32
    micro: PositiveInt = 1
    ema: bool = True
    precision: Literal["no", "bf16"] = "bf16"
    again: bool = True


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one video and of one GPU.

    FLOPs of one video: ``linear`` in the linear maps of the blocks, ``attention``, ``ends`` before and after the
    blocks, ``backward`` and ``recomputed``. Bytes of one GPU: ``states`` and ``activations``. ``seconds`` of a forward
    and backward pass of ``micro`` videos on the GPUs that share them.
    """

    tokens: int
    shard: int  # largest number of tokens of a video on one GPU
    linear: float
    attention: float
    ends: float
    backward: float
    recomputed: float
    states: int
    activations: int
    seconds: float

    @property
    def forward(self) -> float:
        return self.linear + self.attention + self.ends

    @property
    def memory(self) -> int:
        return self.states + self.activations


def tokens(frames: int, height: int, width: int, vae: Vae | None = None) -> int:
    """Number of latent tokens of a video; the default VAE is Step-Video's. ValueError for a size that the VAE cannot
    encode."""
    stride, chunk = (vae or STEP_VIDEO).stride, (vae or STEP_VIDEO).chunk
    if chunk and frames != 1 and frames % chunk:
        near = max(1, round(frames / chunk)) * chunk
        raise ValueError(f"{frames} frames are not whole chunks of {chunk}: take {near}, or 1")
    chunks = max(1, frames // chunk) if chunk else 1
    t, h, w = stride
    if frames < 1 or (frames // chunks - 1) % t:
        raise ValueError(f"{frames} frames: take a multiple of {t}, plus 1")
    if height % h or width % w or min(height, width) < 1:
        raise ValueError(f"{height} x {width} pixels: take multiples of {h} x {w}")
    return chunks * ((frames // chunks - 1) // t + 1) * (height // h) * (width // w)


def cost(dit: Dit, count: int, machine: Machine) -> Cost:
    """Cost of a DiT on videos of ``count`` tokens."""
    d, text = dit.width, sum(dit.text_tokens)
    per_token = 2 * (4 + 2 + 2 * dit.mlp) * d * d  # self-attention, q and output of cross-attention, MLP
    linear = dit.layers * (per_token * count + 2 * 2 * d * d * text)  # k and v of cross-attention
    attention = dit.layers * (4 * count * count * d + 4 * count * text * d)
    first = 2 * d * (count * dit.inputs + sum(_words(dit)) + WAVES * dit.scalars)  # maps of what needs no gradient
    ends = first + 2 * d * (count * dit.channels + d * (dit.text_tokens[0] + dit.scalars + 6))
    forward = linear + attention + ends
    backward = 2 * forward - first
    shard = -(-count // machine.context)
    seconds = (forward + backward) * machine.micro / (machine.context * machine.tflops * 1e12 * machine.mfu)
    return Cost(
        count,
        shard,
        linear,
        attention,
        ends,
        backward,
        linear + attention if machine.again else 0.0,
        _states(dit, machine),
        _activations(dit, shard, machine),
        seconds,
    )


def _states(dit: Dit, machine: Machine) -> int:
    gathered = 2 * dit.block * BYTES[machine.precision] if machine.gpus > 1 else 0
    return -(-dit.parameters * FP32 * (5 if machine.ema else 4) // machine.gpus) + gathered


def _activations(dit: Dit, shard: int, machine: Machine) -> int:
    each, d, text = BYTES[machine.precision], dit.width, sum(dit.text_tokens)
    block = shard * ((BLOCK + 2 * dit.mlp) * each + BLOCK_FP32 * FP32) + text * (TEXT * each + TEXT_FP32 * FP32)
    rest = (dit.layers + LAST) * shard + text + 2 * dit.text_tokens[0]  # inputs of all blocks, the last output, text
    ends = each * (shard * dit.inputs + sum(_words(dit)))
    return machine.micro * (d * (block * (1 if machine.again else dit.layers) + each * rest) + ends)


def _words(dit: Dit) -> list[int]:
    """Numbers that each text encoder produces for a video."""
    return [n * channels for n, channels in zip(dit.text_tokens, dit.text, strict=True)]
