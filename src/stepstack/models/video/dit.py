"""Step-Video's DiT (arXiv 2502.10248 §4.2, 2503.11251): text and image to video, a diffusers model that trains.

A token is one voxel of the latent. Time and motion enter through adaLN-single, which has one shared projection and a
table a block. The first frame enters by channels: its latent, and zeros for the other frames, beside the noisy latent.
Two text encoders enter by cross-attention, CLIP's tokens before the language model's.

Shapes: B batch, F latent frames, C channels, H W latent height and width, S = F*H*W tokens, L text tokens, D model
width, N heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from stepstack.models.video.grid import Grid

STEPS = 1000  # steps in which the time in [0, 1] is embedded
WAVES = 256  # channels of the sinusoids of time and motion
Rotary = tuple[Tensor, Tensor]  # cos and sin [S, E] of the angles of every token


class Rope(nn.Module):
    """Rotary positions of a grid, computed once a forward pass. Each part of a head turns with one coordinate."""

    def __init__(self, split: Sequence[int]):
        super().__init__()
        self.split = tuple(split)

    def forward(self, grid: Grid, device: torch.device) -> Rotary:
        angles_SE = rotation(grid, self.split, device)
        return angles_SE.cos(), angles_SE.sin()


class Dense(nn.Module):
    """Attention over all tokens of a video. Another processor, such as that of DSV, may replace it."""

    _attention_backend = None  # diffusers' name: torch chooses

    def forward(self, attn: SelfAttention, x_BSD: Tensor, rotary: Rotary) -> Tensor:
        return attn.to_out(merge_heads(F.scaled_dot_product_attention(*attn.project(x_BSD, rotary))))


class SelfAttention(nn.Module):
    """Self-attention with RMSNorm of q and k before the rotation (QK-norm). The processor does the attending."""

    def __init__(self, width: int, heads: int, split: Sequence[int]):
        super().__init__()
        self.heads, self.split = heads, tuple(split)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(width // heads, eps=1e-6) for _ in range(2))
        self.processor: nn.Module = Dense()

    def set_processor(self, processor: nn.Module) -> None:
        self.processor = processor

    def forward(self, x_BSD: Tensor, rotary: Rotary) -> Tensor:
        return self.processor(self, x_BSD, rotary)

    def project(self, x_BSD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Normed and rotated q and k, and v, each [B, H, S, E]."""
        q, k, v = (_heads(to(x_BSD), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        return rotate(self.norm_q(q), rotary, self.split), rotate(self.norm_k(k), rotary, self.split), v


class CrossAttention(nn.Module):
    """Attention from video tokens to text, with QK-norm and without positions."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(width // heads, eps=1e-6) for _ in range(2))

    def forward(self, x_BSD: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        q = self.norm_q(_heads(self.to_q(x_BSD), self.heads))
        k = self.norm_k(_heads(self.to_k(text_BLD), self.heads))
        v = _heads(self.to_v(text_BLD), self.heads)
        return self.to_out(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BL[:, None, None, :])))


class Block(nn.Module):
    """Self-attention and feed-forward, modulated and gated by time, and cross-attention without modulation."""

    def __init__(self, width: int, heads: int, split: Sequence[int], mlp: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-5) for _ in range(2))
        self.attn1 = SelfAttention(width, heads, split)
        self.attn2 = CrossAttention(width, heads)
        self.up, self.down = nn.Linear(width, mlp * width, bias=False), nn.Linear(mlp * width, width, bias=False)
        self.table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x_BSD: Tensor, text_BLD: Tensor, mask_BL: Tensor, time_B6D: Tensor, rotary: Rotary) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = (self.table + time_B6D)[:, :, None].unbind(1)  # each [B, 1, D]
        x_BSD = x_BSD + gate * self.attn1(self.norm1(x_BSD) * (1 + scale) + shift, rotary)
        x_BSD = x_BSD + self.attn2(x_BSD, text_BLD, mask_BL)
        inner = F.gelu(self.up(self.norm2(x_BSD) * (1 + scale2) + shift2), approximate="tanh")
        return x_BSD + gate2 * self.down(inner)


class VideoDiT(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """DiT that predicts the velocity of flow matching. The defaults are Step-Video-TI2V's 30B.

    ``text_channels``: token widths of the language model and of CLIP. ``split``: channels of a head for frames, height
    and width. ``with_image``, ``with_motion``: which conditions it takes.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # type: ignore[assignment] # noqa: RUF012
    # Weights of DSV's predictors, which are loaded by the code that enables DSV.
    _keys_to_ignore_on_load_unexpected = [r"\.processor\."]  # type: ignore[assignment] # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        layers: int = 48,
        heads: int = 48,
        head_width: int = 128,
        channels: int = 64,
        text_channels: tuple[int, int] = (6144, 1024),
        split: tuple[int, int, int] = (64, 32, 32),
        mlp: int = 4,
        with_image: bool = True,
        with_motion: bool = True,
    ):
        super().__init__()
        if sum(split) != head_width or any(part % 2 for part in split):
            raise ValueError(
                f"split {tuple(split)} must be even parts of head_width {head_width}: they are rotated in pairs"
            )
        width = heads * head_width
        self.patch = nn.Linear(channels * (2 if with_image else 1), width)
        self.waves = Timesteps(WAVES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(WAVES, width)
        self.motion = TimestepEmbedding(WAVES, width) if with_motion else None
        self.modulation = nn.Linear(width, 6 * width)
        self.text_norm = nn.LayerNorm(text_channels[0], eps=1e-6, elementwise_affine=False)
        self.text_up, self.text_down = nn.Linear(text_channels[0], width), nn.Linear(width, width)
        self.clip = nn.Linear(text_channels[1], width)
        self.rope = Rope(split)
        self.blocks = nn.ModuleList(Block(width, heads, split, mlp) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.table_out = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.out = nn.Linear(width, channels)
        self.gradient_checkpointing = False

    def forward(
        self,
        latents_BFCYX: Tensor,
        time_B: Tensor,
        text_BLC: Tensor,
        text_mask_BL: Tensor,
        clip_BMC: Tensor,
        *,
        image_BFCYX: Tensor | None = None,
        motion_B: Tensor | None = None,
    ) -> Tensor:
        """Velocity, in the shape of the latents.

        ``time_B`` in [0, 1], where 0 is noise. ``text_mask_BL``: true where there is text (CLIP's tokens all count).
        ``image_BFCYX``: the latent of the first frame, and zeros. ValueError for a condition that the model takes and
        does not get, or the reverse.
        """
        self._check(latents_BFCYX, image_BFCYX, motion_B)
        _, frames, _, height, width = latents_BFCYX.shape
        grid = (frames, height, width)
        both = latents_BFCYX if image_BFCYX is None else torch.cat([latents_BFCYX, image_BFCYX], dim=2)
        x_BSD = self.patch(both.permute(0, 1, 3, 4, 2).flatten(1, 3))
        time_BD = self.time(self.waves(time_B * STEPS).to(x_BSD.dtype))
        if self.motion is not None:
            time_BD = time_BD + self.motion(self.waves(motion_B).to(x_BSD.dtype))
        time_B6D = self.modulation(F.silu(time_BD)).unflatten(1, (6, -1))
        text_BLD, mask_BL = self._text(text_BLC, text_mask_BL, clip_BMC)
        rotary = self.rope(grid, x_BSD.device)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                again: Any = self._gradient_checkpointing_func
                x_BSD = again(block, x_BSD, text_BLD, mask_BL, time_B6D, rotary)
            else:
                x_BSD = block(x_BSD, text_BLD, mask_BL, time_B6D, rotary)
        shift, scale = (self.table_out + time_BD[:, None]).unbind(1)
        x_BSD = self.norm_out(x_BSD) * (1 + scale[:, None]) + shift[:, None]
        # No view: FSDP2 hooks what a module returns.
        return self.out(x_BSD).unflatten(1, grid).permute(0, 1, 4, 2, 3).clone()

    def get_parameter_or_buffer(self, target: str) -> Tensor:
        """A parameter or buffer by name, also one of the model itself, which accelerate's FSDP2 cannot find without."""
        owner, _, leaf = target.rpartition(".")
        return getattr(self.get_submodule(owner), leaf)

    def _text(self, text_BLC: Tensor, mask_BL: Tensor, clip_BMC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, L, D] with CLIP's tokens before the language model's, and the mask of those that are text."""
        text_BLD = self.text_down(F.gelu(self.text_up(self.text_norm(text_BLC)), approximate="tanh"))
        clip_BMD = self.clip(clip_BMC)
        every_BM = torch.ones(clip_BMD.shape[:2], dtype=torch.bool, device=mask_BL.device)
        return torch.cat([clip_BMD, text_BLD], dim=1), torch.cat([every_BM, mask_BL.bool()], dim=1)

    def _check(self, latents: Tensor, image: Tensor | None, motion: Tensor | None) -> None:
        cfg: Any = self.config
        for name, taken, condition in (("image", cfg.with_image, image), ("motion", cfg.with_motion, motion)):
            if taken != (condition is not None):
                state = "missing" if taken else "given"
                raise ValueError(f"{name} is {state}: this model's config says with_{name}={taken}")
        if latents.ndim != 5 or latents.shape[2] != cfg.channels:
            raise ValueError(f"latents must be [B, F, {cfg.channels}, Y, X], found {list(latents.shape)}")
        if image is not None and image.shape != latents.shape:
            raise ValueError(f"image is {list(image.shape)}, the latents are {list(latents.shape)}: pad it with zeros")


def rotation(grid: Grid, split: Sequence[int], device: torch.device) -> Tensor:
    """Angles [S, E] of rotary positions (each one twice); each part of a head turns with one coordinate of its
    token."""
    return _angles(tuple(grid), tuple(split)).to(device)


@lru_cache(maxsize=16)
def _angles(grid: Grid, split: tuple[int, ...]) -> Tensor:
    places_S3 = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid)).reshape(-1, 3)
    parts = []
    for axis, channels in enumerate(split):
        speed = 10_000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        parts.append((places_S3[:, axis, None] * speed).repeat(1, 2))
    return torch.cat(parts, dim=1).float()


def rotate(x_BHSE: Tensor, rotary: Rotary, split: Sequence[int]) -> Tensor:
    """Rotation by halves within each part of the head, in float32."""
    turned = []
    parts = (y.split(list(split), -1) for y in (x_BHSE.float(), *rotary))
    for x, cos, sin in zip(*parts, strict=True):
        first, second = x.chunk(2, -1)
        turned.append(x * cos + torch.cat([-second, first], -1) * sin)
    return torch.cat(turned, -1).to(x_BHSE.dtype)


def _heads(x_BLD: Tensor, heads: int) -> Tensor:
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x_BHSE: Tensor) -> Tensor:
    return x_BHSE.transpose(1, 2).flatten(2)


# Map from published names to ours, for tensors that are the same.
PUBLISHED_NAMES = {
    "pos_embed.proj.bias": "patch.bias",
    "adaln_single.emb.timestep_embedder.linear_1": "time.linear_1",
    "adaln_single.emb.timestep_embedder.linear_2": "time.linear_2",
    "adaln_single.emb.motion_score_embedder.linear_1": "motion.linear_1",
    "adaln_single.emb.motion_score_embedder.linear_2": "motion.linear_2",
    "adaln_single.linear": "modulation",
    "caption_projection.linear_1": "text_up",
    "caption_projection.linear_2": "text_down",
    "clip_projection": "clip",
    "scale_shift_table": "table_out",
    "proj_out": "out",
}
PUBLISHED_BLOCK_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "scale_shift_table": "table",
    "ff.net.0.proj": "up",
    "ff.net.2": "down",
    **{
        f"attn{n}.{theirs}": f"attn{n}.{ours}"
        for n in (1, 2)
        for theirs, ours in (("wo", "to_out"), ("q_norm", "norm_q"), ("k_norm", "norm_k"), ("wq", "to_q"))
    },
}


def from_published(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Our state dict of a checkpoint in Step-Video-TI2V's layout, where wqkv and wkv are interleaved head by head.

    ValueError names a tensor that has no place here.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours |= _our_tensors(name, tensor, heads)
    return ours


def _our_tensors(name: str, tensor: Tensor, heads: int) -> dict[str, Tensor]:
    if name == "pos_embed.proj.weight":
        return {"patch.weight": tensor.flatten(1)}  # a 1 x 1 convolution
    if not name.startswith("transformer_blocks."):
        return {_renamed(name, PUBLISHED_NAMES, name): tensor}
    _, number, inner = name.split(".", 2)
    if inner.endswith(("wqkv.weight", "wkv.weight")):
        layer, _, kind = inner.removesuffix(".weight").rpartition(".")
        parts = tensor.unflatten(0, (heads, len(kind) - 1, -1)).unbind(1)  # [N, E, D] each
        return {
            f"blocks.{number}.{layer}.to_{letter}.weight": part.flatten(0, 1)
            for letter, part in zip(kind[1:], parts, strict=True)
        }
    return {f"blocks.{number}.{_renamed(inner, PUBLISHED_BLOCK_NAMES, name)}": tensor}


def _renamed(name: str, known: Mapping[str, str], whole: str) -> str:
    if name in known:
        return known[name]
    head, _, tail = name.rpartition(".")
    if head not in known or tail not in ("weight", "bias"):
        raise ValueError(f"{whole} is no tensor of Step-Video-TI2V's DiT: give the folder of its checkpoint")
    return f"{known[head]}.{tail}"
