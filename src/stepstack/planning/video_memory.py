"""What a Step-Video DiT costs: tokens, parameters, FLOPs, memory and time of a step. Arithmetic, no torch.

FLOPs count a multiply-add as two. Memory is of one GPU under full sharding with gradient checkpointing: parameters,
gradients and two moments in float32 (and the moving average), two gathered blocks in bfloat16, the inputs of all
blocks, and the activations of the one that is recomputed. What allocator and communication need on top is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from stepstack.config import Positive, Strict

FP32, BF16 = 4, 2
WAVES = 256
BLOCK_WIDTHS = 20  # tensors of [tokens, width] that the backward of a block keeps, its MLP's inner ones counted by mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class Dit(Strict):
    """The defaults are Step-Video-TI2V's 30B, of 64 latent channels and its own encoders."""

    layers: Positive = 48
    heads: Positive = 48
    head_width: Positive = 128
    channels: Positive = 64
    text: tuple[Positive, Positive] = (6144, 1024)
    text_tokens: Positive = 397
    mlp: Positive = 4
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
        d, channels = self.width, self.channels * (2 if self.with_image else 1)
        embedder = (WAVES * d + d) + (d * d + d)
        text = (self.text[0] * d + d) + (d * d + d) + (self.text[1] * d + d)
        ends = (channels * d + d) + 2 * d + (d * self.channels + self.channels)
        return self.layers * self.block + embedder * (2 if self.with_motion else 1) + 6 * d * d + 6 * d + text + ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine(Strict):
    """``gpus`` share the weights, and ``context`` of them each video's tokens; ``tflops`` of one at its peak in
    bfloat16; ``mfu``: the share of it reached."""

    gpus: Positive = 128
    context: Positive = 1
    tflops: Annotated[float, Field(gt=0)] = 989.0
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.32
    micro: Positive = 1
    ema: bool = True


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of one video's forward pass; bytes of one GPU; seconds of a forward and backward pass of ``micro`` videos
    by the GPUs that share them."""

    tokens: int
    shard: int  # tokens of a video that one GPU has, at most
    linear: float
    attention: float
    states: int
    activations: int
    seconds: float

    @property
    def forward(self) -> float:
        return self.linear + self.attention

    @property
    def memory(self) -> int:
        return self.states + self.activations


def latent_frames(frames: int) -> int:
    """Of Step-Video's VAE: 3 for each chunk of 17 frames, 1 for an image. ValueError for another number."""
    if frames != 1 and (frames < 17 or frames % 17):
        raise ValueError(f"{frames} frames are not whole chunks of 17: take {max(1, round(frames / 17)) * 17}, or 1")
    return frames // 17 * 3 or 1


def tokens(frames: int, height: int, width: int) -> int:
    """Of a video of Step-Video: 16 x 16 pixels a latent voxel. ValueError for a size that is no multiple of 16."""
    if height % 16 or width % 16 or min(height, width) < 16:
        raise ValueError(f"{height} x {width} pixels: both must be multiples of 16")
    return latent_frames(frames) * (height // 16) * (width // 16)


def cost(dit: Dit, count: int, machine: Machine) -> Cost:
    """Of ``count`` tokens a video. Backward is twice a forward, and checkpointing one forward more."""
    d = dit.width
    per_token = 2 * (4 + 2 + 2 * dit.mlp) * d * d  # self-attention, q and output of cross-attention, MLP
    text = 2 * 2 * d * d * dit.text_tokens  # k and v of cross-attention
    cross = 4 * count * dit.text_tokens * d
    linear = dit.layers * (per_token * count + text)
    attention = dit.layers * (4 * count * count * d + cross)
    each = FP32 * (5 if machine.ema else 4)
    gathered = 2 * dit.block * BF16
    states = -(-dit.parameters * each // machine.gpus) + gathered
    shard = -(-count // machine.context)
    kept = machine.micro * shard * d * BF16
    activations = kept * dit.layers + kept * (BLOCK_WIDTHS + 2 * dit.mlp)
    seconds = 4 * (linear + attention) * machine.micro / (machine.context * machine.tflops * 1e12 * machine.mfu)
    return Cost(count, shard, linear, attention, states, activations, seconds)
