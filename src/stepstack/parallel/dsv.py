"""Context parallelism of VideoDiT with DSV's attention: a group of ranks shares one video, each holding some cubes.

A shard is a run of consecutive cubes, so that everything that is done a token at a time is done on the shard, like in
``Context``. Dense attention and observations are split by heads (DeepSpeed-Ulysses). Sparse attention follows a plan of
``planning.contextparallel`` (DSV, arXiv 2502.07590, section 7). For the lists of its query cubes a rank gathers the
low-rank keys of all ranks, or with ``selector="pooled"`` the means of their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stepstack.models.video.dit import SelfAttention, VideoDiT
from stepstack.models.video.dsv import profiler
from stepstack.models.video.dsv.config import ContextPlan
from stepstack.models.video.dsv.core import Call, DsvAttention
from stepstack.models.video.dsv.diffusers import Rotary, VideoDsv
from stepstack.models.video.dsv.handle import Dsv
from stepstack.models.video.dsv.layout import CubeLayout
from stepstack.models.video.dsv.observe import HEAD_METRICS, observe_cubes
from stepstack.models.video.dsv.predictor import Grid
from stepstack.ops.attention import resolve_impl
from stepstack.ops.select import block_means, low_rank_selection, pooled_selection
from stepstack.ops.selection import Blocks, Selection, offsets_of
from stepstack.parallel import exchange
from stepstack.parallel.context import Groups, parallel_attention
from stepstack.parallel.ulysses import Context
from stepstack.planning.contextparallel.plan import plan as plan_context
from stepstack.planning.contextparallel.problem import BlockLayout, Layer, Profile


@dataclass(frozen=True, eq=False)
class Shard:
    """Part of a video on one rank.

    ``own`` int64 [s]: its tokens as the model numbers them, in the order of cubes. ``angles`` [s, rank / 2]: their
    angles in the predictors. ``blocks``: its cubes. ``cut`` has all ranks' shards.
    """

    layout: CubeLayout
    cut: BlockLayout
    own: Tensor
    angles: Tensor
    blocks: Blocks

    @classmethod
    def build(cls, layout: CubeLayout, ranks: int, rank: int) -> Shard:
        """Shard of a rank. ValueError where there are fewer cubes than ranks."""
        sizes = tuple(layout.blocks.lengths.tolist())
        cut = BlockLayout(sizes, sizes, ranks)
        tokens, cubes = cut.tokens("queries", rank), cut.blocks("queries", rank)
        own = layout.cubes.order[tokens.start : tokens.stop]
        blocks = Blocks(offsets_of(layout.blocks.lengths[cubes.start : cubes.stop]), layout.blocks.size)
        return cls(layout, cut, own, layout.angles[own], blocks)


class DsvContext(Context):
    """``Context`` of a model with DSV, whose handle is ``dsv``.

    Losses, gradients, and the values that DSV learns and logs are those of one process, whatever the plan. ValueError
    where a self-attention is not DSV's.
    """

    def __init__(self, dit: VideoDiT, size: int, dsv: Dsv, context_plan: ContextPlan):
        self.dsv, self.context_plan = dsv, context_plan
        self.shards: dict[tuple[Grid, torch.device], Shard] = {}
        self.groups: dict[Grid, Groups] = {}  # process groups of the newest plan, by the size of video
        self.newest: Groups | None = None
        super().__init__(dit, size)
        dit.register_forward_pre_hook(self._see, with_kwargs=True)

    def __enter__(self) -> None:
        """Take the sparsity for a new plan when one is due.

        It is part of DSV's state, so that a resumed run follows the same plan.
        """
        dsv = self.dsv
        if dsv.stage == 2 and (dsv.planned is None or dsv.steps % self.context_plan.every == 0):
            dsv.planned = [a.sparsity_H.tolist() for a in dsv.attentions if a.sparsity_H is not None]
            self.groups.clear()
        super().__enter__()

    # -- cutting and joining ---------------------------------------------------------------------------------------

    def _share(self, attention: SelfAttention) -> None:
        processor = attention.processor
        if not isinstance(processor, VideoDsv) or processor.context is not None:
            raise ValueError(f"{type(processor).__name__} attends here: this context parallelism needs DSV, once")
        processor.context = self

    def _see(self, dit: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        if not self.on:
            return
        latents = kwargs["latents_BFCYX"] if "latents_BFCYX" in kwargs else args[0]
        _, frames, _, height, width = latents.shape
        key = (frames, height, width), latents.device
        if key not in self.shards:
            self.shards[key] = Shard.build(self.dsv.layout(*key), self.size, self.rank)
        self.shard = self.shards[key]
        self.tokens = [len(self.shard.cut.tokens("queries", rank)) for rank in range(self.size)]

    def _cut_video(self, module: Any, args: tuple[Tensor]) -> tuple[Tensor] | None:
        return (self._mine(args[0], 1),) if self.on else None

    def _cut_rotary(self, module: Any, args: Any, rotary: Any) -> Any:
        cut = super()._cut_rotary(module, args, rotary)
        return None if cut is None else Rotary(cut, rotary.call)

    def _join(self, module: Any, args: Any, out_BsC: Tensor) -> Tensor | None:
        whole = super()._join(module, args, out_BsC)
        return None if whole is None else self.shard.layout.cubes.scatter(whole)

    def _mine(self, x: Tensor, dim: int) -> Tensor:
        return x.index_select(dim, self.shard.own)

    # -- attention ---------------------------------------------------------------------------------------------------

    def attend(self, attention: DsvAttention, x: Tensor, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """Output o [B, H, s, E] from x [B, s, C] and q, k, v [B, H, s, E] of the shard: ``DsvAttention.attend`` over
        ranks.

        Observations use q and k in v's dtype, the one in which they attend.
        """
        if attention.speed is not None:
            attention.check_speed(v, attention.speed)
        q, k = q.to(v.dtype), k.to(v.dtype)  # as autocast gives SDPA: norms leave them wider
        look = call.sampled is not None and attention.index not in call.done
        if attention.is_sparse(call.threshold):
            if look:
                self._observe(attention, x, call, *self._to_heads((q.detach(), k.detach())))
            with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
                selection = self._select(attention, x, q, k)
            return parallel_attention(q, k, v, selection, attention.index, self._groups(v), check=False)
        q, k, v = self._to_heads((q, k, v))
        if look:
            self._observe(attention, x, call, q, k)
        return exchange.to_tokens(attention.dense(q, k, v), self.heads, self.tokens, self.group, self.moved)

    def _to_heads(self, shards: Sequence[Tensor]) -> list[Tensor]:
        tokens = [[count] * len(shards) for count in self.tokens]
        return exchange.to_heads(shards, self.heads, tokens, self.group, self.moved)

    def _observe(self, attention: DsvAttention, x: Tensor, call: Call, q: Tensor, k: Tensor) -> None:
        """Observe this rank's heads.

        Means over ranks, which ``Dsv.step`` takes, equal means over all heads because ranks have equally many.
        """
        assert call.sampled is not None
        call.done.add(attention.index)
        own, whole_H = list(self.heads[self.rank]), attention.sparsity_H
        sparsity_h = None if whole_H is None else whole_H[own]
        predictor, mass, blocks = attention.predictor, attention.config.mass, self.shard.layout.blocks
        observation = observe_cubes(
            predictor, x, self.shard.angles, self._to_heads, q, k, blocks, call.sampled, mass, sparsity_h
        )
        metrics_by_head = observation.metrics_by_head.new_zeros(len(HEAD_METRICS), predictor.heads)
        metrics_by_head[:, own] = observation.metrics_by_head * self.size
        observation.metrics_by_head = metrics_by_head
        attention.observed = observation if attention.observed is None else attention.observed + observation

    def _select(self, attention: DsvAttention, x: Tensor, q: Tensor, k: Tensor) -> Selection:
        """Selection of the shard's query cubes over all key cubes."""
        assert attention.sparsity_H is not None
        own, keys = self.shard.blocks, self.shard.layout.blocks
        keep_H = profiler.blocks_to_keep(attention.sparsity_H, keys.count)
        if attention.config.selector == "pooled":
            counts = [len(self.shard.cut.blocks("keys", rank)) for rank in range(self.size)]
            means = self._gathered(block_means(k, own, resolve_impl("auto", k)), counts)
            of_one = Blocks.even(keys.count, 1, k.device)  # a mean is its own mean
            return replace(pooled_selection(q, means, own, of_one, keep_H), keys=keys)
        low_q, low_k = attention.predictor(x, self.shard.angles)
        return low_rank_selection(low_q, self._gathered(low_k, self.tokens), own, keys, keep_H)

    def _gathered(self, x_BHsD: Tensor, counts: Sequence[int]) -> Tensor:
        heads = x_BHsD.shape[1]
        whole = exchange.gather_shards(x_BHsD.transpose(1, 2).flatten(2), counts, self.group, self.moved)
        return whole.unflatten(2, (heads, -1)).transpose(1, 2)

    def _groups(self, v: Tensor) -> Groups:
        """Process groups of the plan for this size of video, created by all ranks when they are first needed."""
        grid = self.shard.layout.grid
        if grid not in self.groups:
            assert self.dsv.planned is not None
            cut = self.shard.cut
            layers = tuple(Layer.from_sparsity(sparsity, cut) for sparsity in self.dsv.planned)
            profile = Profile(layout=cut, head_dim=v.shape[-1], layers=layers, element_bytes=v.element_size())
            plan = plan_context(profile, self.context_plan.cluster, self.context_plan.options)
            self.groups[grid] = self.newest = Groups(plan, self.group, self.newest)
        return self.groups[grid]
