"""DSV in video transformers, by their attention processors: diffusers' Wan and LTX, and VideoDiT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_ltx import apply_rotary_emb
from torch import Tensor, nn

from stepstack.config import ConfigError
from stepstack.models.video.dit import VideoDiT, merge_heads
from stepstack.models.video.dsv.config import DsvConfig
from stepstack.models.video.dsv.core import Call, DsvAttention
from stepstack.models.video.dsv.handle import Dsv, load_speed_profile
from stepstack.models.video.grid import Grid


def enable_dsv(model: Any, config: DsvConfig) -> Dsv:
    """Give every self-attention over the video a DSV processor. Cross-attention stays unchanged.

    From now on the model's state_dict has the predictors as ``...attn1.processor.predictor.query`` and ``.key``. They
    are fp32 on the device of the weights, so convert and move the model first. ConfigError for an unknown model.
    """
    kind = type(model)
    if issubclass(kind, WanTransformer3DModel):
        return install(model, [block.attn1 for block in model.blocks], WanDsv, wan_grid, config)
    if issubclass(kind, LTXVideoTransformer3DModel):
        return install(model, [block.attn1 for block in model.transformer_blocks], LtxDsv, ltx_grid, config)
    if issubclass(kind, VideoDiT):
        return install(model, [block.attn1 for block in model.blocks], VideoDsv, video_grid, config)
    known = "WanTransformer3DModel, LTXVideoTransformer3DModel, VideoDiT"
    raise ConfigError(f"DSV knows no {kind.__name__}, only {known}: take one of these (or add it to {__name__})")


class Rotary(tuple):
    """Pair (cos, sin) of the model with the ``call`` that it belongs to, which reaches every block, also in
    checkpoints."""

    call: Call

    def __new__(cls, pair: Sequence[Tensor], call: Call) -> Rotary:
        rotary = super().__new__(cls, pair)
        rotary.call = call
        return rotary


def install(
    model: Any,
    attentions: Sequence[Any],
    processor: type[DiffusersDsv],
    grid_of: Callable[..., Grid],
    config: DsvConfig,
) -> Dsv:
    """Install the processors. ``grid_of`` takes the rotary embedding's module and its arguments."""
    speed = load_speed_profile(config)
    processors = []
    for index, attention in enumerate(attentions):
        if isinstance(attention.processor, DsvAttention):
            raise ConfigError("DSV is already enabled on this model: enable it once")
        weight = attention.to_q.weight
        processors.append(processor(index, weight.shape[1], attention.heads, config, speed).to(weight.device))
        processors[-1]._attention_backend = attention.processor._attention_backend
        processors[-1].train(attention.training)
        attention.set_processor(processors[-1])
    dsv = Dsv(processors, config, speed)

    def mark(rope: nn.Module, args: tuple, kwargs: dict[str, Any], pair: Sequence[Tensor]) -> Rotary:
        training = rope.training and torch.is_grad_enabled()
        return Rotary(pair, dsv.call(grid_of(rope, *args, **kwargs), pair[0].device, training))

    model.rope.register_forward_hook(mark, with_kwargs=True)
    return dsv


class DiffusersDsv(DsvAttention):
    """Attention whose dense form runs on the backend that the model was set to."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def dense(self, q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BHSE, k_BHSE, v_BHSE))
        return dispatch_attention_fn(q, k, v, backend=self._attention_backend).transpose(1, 2)

    def check(self, encoder: Tensor | None, mask: Tensor | None, rotary: Any) -> None:
        whole = encoder is None and mask is None and self._parallel_config is None
        if not whole or not isinstance(rotary, Rotary):
            raise ConfigError(
                "DSV is for self-attention over the whole video: call the model without a mask, with its own rotary "
                "embedding and no enable_parallelism"
            )

    def finish(self, attn: Any, x: Tensor, q_BSHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor, rotary: Rotary) -> Tensor:
        q, k, v = (y.transpose(1, 2) for y in (q_BSHE, k_BSHE, v_BSHE))
        out = self.attend(x, q, k, v, rotary.call).transpose(1, 2).flatten(2).type_as(q)
        return attn.to_out[1](attn.to_out[0](out))


class WanDsv(DiffusersDsv):
    """Processor for WanAttention: heads first, then RoPE-3D."""

    def forward(
        self, attn: Any, x: Tensor, encoder: Tensor | None = None, mask: Tensor | None = None, rotary: Any = None
    ) -> Tensor:
        self.check(encoder, mask, rotary)
        if attn.fused_projections:
            q, k, v = attn.to_qkv(x).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        q, k, v = (y.unflatten(2, (attn.heads, -1)) for y in (attn.norm_q(q), attn.norm_k(k), v))
        q, k = (rotate_pairs(y, *rotary) for y in (q, k))
        return self.finish(attn, x, q, k, v, rotary)


class LtxDsv(DiffusersDsv):
    """Processor for LTXAttention: RoPE over the whole width, then heads."""

    def forward(
        self, attn: Any, x: Tensor, encoder: Tensor | None = None, mask: Tensor | None = None, rotary: Any = None
    ) -> Tensor:
        self.check(encoder, mask, rotary)
        q = apply_rotary_emb(attn.norm_q(attn.to_q(x)), rotary)
        k = apply_rotary_emb(attn.norm_k(attn.to_k(x)), rotary)
        q, k, v = (y.unflatten(2, (attn.heads, -1)) for y in (q, k, attn.to_v(x)))
        return self.finish(attn, x, q, k, v, rotary)


class VideoDsv(DiffusersDsv):
    """Processor for VideoDiT: QK-norm, then RoPE-3D by halves. ``context``: a ``DsvContext`` whose ranks share
    videos."""

    dense = DsvAttention.dense
    context: Any = None

    def forward(self, attn: Any, x: Tensor, rotary: Any) -> Tensor:
        self.check(None, None, rotary)
        q, k, v = attn.project(x, rotary)
        shared = self.context is not None and self.context.on
        out = self.context.attend(self, x, q, k, v, rotary.call) if shared else self.attend(x, q, k, v, rotary.call)
        return attn.to_out(merge_heads(out))


def rotate_pairs(x_BSHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Wan's RoPE on neighbouring pairs; ``cos`` and ``sin`` [1, S, 1, D] hold every angle twice."""
    a, b = x_BSHE.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x_BSHE)


def wan_grid(rope: Any, latents: Tensor) -> Grid:
    f, h, w = (n // p for n, p in zip(latents.shape[2:], rope.patch_size, strict=True))
    return f, h, w


def video_grid(rope: Any, grid: Grid, device: torch.device) -> Grid:
    return grid


def ltx_grid(
    rope: Any, latents: Tensor, num_frames: int | None, height: int | None, width: int | None, *unused: Any
) -> Grid:
    """Grid of an LTX call. LTX gets tokens, so the caller must pass the grid."""
    if num_frames is None or height is None or width is None:
        raise ConfigError("DSV needs the video's grid: call the LTX model with num_frames, height and width")
    return num_frames, height, width
