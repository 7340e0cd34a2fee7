"""One attention under DSV, in any model: observe, then attend densely or sparsely."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepstack.models.video.dsv import profiler
from stepstack.models.video.dsv.config import DsvConfig
from stepstack.models.video.dsv.layout import CubeLayout
from stepstack.models.video.dsv.observe import Observation, observe
from stepstack.models.video.dsv.predictor import LowRankPredictor
from stepstack.models.video.dsv.speed import AttentionShape, SpeedProfile, device_name
from stepstack.ops.attention import sparse_attention
from stepstack.ops.select import low_rank_selection, pooled_selection
from stepstack.ops.selection import Selection


@dataclass(eq=False)
class Call:
    """One forward pass of the model.

    It travels through the blocks with the rotary embedding, so that gradient checkpointing, which runs a block again in
    the backward pass, passes the same call again. ``done`` holds the attentions that have observed this pass, so that
    none does so twice. ``sampled``: query cubes to observe, or None. ``threshold``: an attention is sparse from this
    sparsity on; None where all are dense.
    """

    layout: CubeLayout
    sampled: Tensor | None
    threshold: float | None
    done: set[int] = field(default_factory=set)


class DsvAttention(nn.Module):
    """Attention that a model's attention processor calls.

    ``sparsity_H``: smoothed fraction of key cubes that are not critical, by head, on the CPU; None until profiled. Only
    ``Dsv.step`` changes it and the predictor, so that a recomputed forward pass is the same as the first.
    """

    def __init__(self, index: int, dim: int, heads: int, config: DsvConfig, speed: SpeedProfile | None):
        super().__init__()
        self.index, self.config, self.speed = index, config, speed
        self.predictor = LowRankPredictor(dim, heads, config.rank)
        self.sparsity_H: Tensor | None = None
        self.observed: Observation | None = None
        self.checked: AttentionShape | None = None  # shape that last passed the check of the speed profile

    def attend(self, x_BSC: Tensor, q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, call: Call) -> Tensor:
        """Output o_BHSE from the attention's input x and its final q, k, v, in the model's order of tokens.

        ValueError for tokens that are not the grid's, ConfigError for a speed profile of another shape.
        """
        if q_BHSE.shape[2] != call.layout.tokens or k_BHSE.shape[2] != call.layout.tokens:
            f, h, w = call.layout.grid
            raise ValueError(f"{q_BHSE.shape[2]} tokens are not the {call.layout.tokens} of a grid of {f} x {h} x {w}")
        if self.speed is not None:
            self.check_speed(v_BHSE, self.speed)
        if call.sampled is not None and self.index not in call.done:
            call.done.add(self.index)
            observation = observe(
                self.predictor, x_BSC, q_BHSE, k_BHSE, call.layout, call.sampled, self.config.mass, self.sparsity_H
            )
            self.observed = observation if self.observed is None else self.observed + observation
        if not self.is_sparse(call.threshold):
            return self.dense(q_BHSE, k_BHSE, v_BHSE)
        # One dtype, as autocast gives SDPA: norms leave q and k wider than v.
        q, k, v = (call.layout.to_cubes(x).to(v_BHSE.dtype) for x in (q_BHSE, k_BHSE, v_BHSE))
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            selection = self.select(x_BSC, q, k, call.layout)
        # Its own selections need no check, which would wait for the device.
        return call.layout.to_model(sparse_attention(q, k, v, selection, check=False))

    def is_sparse(self, threshold: float | None) -> bool:
        """Whether the attention is sparse. All its heads go the same way, by their mean, like in the paper."""
        return threshold is not None and self.sparsity_H is not None and float(self.sparsity_H.mean()) >= threshold

    def dense(self, q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q_BHSE, k_BHSE, v_BHSE)

    def select(self, x_BSC: Tensor, q: Tensor, k: Tensor, layout: CubeLayout) -> Selection:
        """Selection of the key cubes of every query cube, as many for a head as its sparsity leaves.

        q and k are in the order of cubes.
        """
        assert self.sparsity_H is not None
        keep_H = profiler.blocks_to_keep(self.sparsity_H, layout.blocks.count)
        if self.config.selector == "pooled":
            return pooled_selection(q, k, layout.blocks, layout.blocks, keep_H)
        low_q, low_k = (layout.to_cubes(y) for y in self.predictor(x_BSC, layout.angles))
        return low_rank_selection(low_q, low_k, layout.blocks, layout.blocks, keep_H)

    def check_speed(self, v_BHSE: Tensor, speed: SpeedProfile) -> None:
        here = AttentionShape(
            device=device_name(v_BHSE.device),
            dtype=str(v_BHSE.dtype).removeprefix("torch."),
            heads=v_BHSE.shape[1],
            head_dim=v_BHSE.shape[3],
            cube=self.config.cube,
            selector=self.config.selector,
            rank=self.config.rank,
        )
        if here != self.checked:
            speed.check(here)
            self.checked = here
