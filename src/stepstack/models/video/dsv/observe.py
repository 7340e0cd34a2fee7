"""Observation of one attention's true scores on sampled queries: the predictor's gradient, and each head's sparsity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from stepstack.models.video.dsv import profiler
from stepstack.models.video.dsv.layout import CubeLayout
from stepstack.models.video.dsv.predictor import LowRankPredictor, low_rank, score_loss
from stepstack.ops.select import low_rank_selection, pooled_selection
from stepstack.ops.selection import Blocks

MAX_SCORES = 1 << 26  # sampled scores held at once, fp32: 256 MiB

# Metrics of a head, in this order: the fraction of keys, and of key cubes, that are not critical. The softmax mass in
# the cubes that low-rank selection takes, that mass over the mass of the best choice of as many cubes, and the fraction
# of that best choice that it takes. The same mass ratio for pooled selection. The fraction of score pairs computed.
HEAD_METRICS = ("token_sparsity", "sparsity", "mass", "recall", "overlap", "pooled_recall", "density")


@dataclass(eq=False)
class Observation:
    """Sums over the forward passes of one step. ``metrics_by_head``: HEAD_METRICS by head. ``gradients``: those of the
    predictor."""

    count: int
    loss: Tensor
    metrics_by_head: Tensor
    gradients: list[Tensor]

    def __add__(self, other: Observation) -> Observation:
        gradients = [a + b for a, b in zip(self.gradients, other.gradients, strict=True)]
        return Observation(
            self.count + other.count, self.loss + other.loss, self.metrics_by_head + other.metrics_by_head, gradients
        )


def observe(
    predictor: LowRankPredictor,
    x_BSC: Tensor,
    q_BHSE: Tensor,
    k_BHSE: Tensor,
    layout: CubeLayout,
    sampled: Tensor,
    mass: float,
    sparsity_H: Tensor | None,
) -> Observation:
    """Observation of one attention.

    ``sampled``: ascending query cubes, int64. ``sparsity_H``: sparsity at which selections are compared; None takes the
    observed one. The backward pass of the predictors' loss runs here, piece by piece, so that only one piece of the
    sampled scores is ever held. It neither extends nor changes the model's graph.
    """

    def arranged(low: Sequence[Tensor]) -> Sequence[Tensor]:
        return [layout.to_cubes(y) for y in low]

    q, k = arranged((q_BHSE.detach(), k_BHSE.detach()))
    return observe_cubes(predictor, x_BSC, layout.angles, arranged, q, k, layout.blocks, sampled, mass, sparsity_H)


def observe_cubes(
    predictor: LowRankPredictor,
    x_BSC: Tensor,
    angles_SP: Tensor,
    arranged: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    q_BHSE: Tensor,
    k_BHSE: Tensor,
    blocks: Blocks,
    sampled: Tensor,
    mass: float,
    sparsity_H: Tensor | None,
) -> Observation:
    """``observe`` for q and k [B, h, S, E] in the order of cubes, which may have only some of the heads.

    ``arranged`` brings the low-rank q and k [B, H, s, rank] of x's tokens and all heads to the tokens and heads of q
    and k.
    """
    with own_graph(q_BHSE.device.type):
        query, key = (w.detach().float().requires_grad_() for w in (predictor.query, predictor.key))
        low = arranged(low_rank(x_BSC.detach(), query, key, predictor.heads, angles_SP))
        low_q, low_k = (y.detach().requires_grad_() for y in low)
        q, k = q_BHSE.detach().float(), k_BHSE.detach().float()
        loss, token_sparsity_H, share_BHQK = scores_by_piece((low_q, low_k), q, k, blocks, sampled, mass)
        back = [leaf.grad for leaf in (low_q, low_k) if leaf.grad is not None]
        gradients = torch.autograd.grad(low, (query, key), back)
    with torch.no_grad():
        metrics = head_metrics((low_q, low_k), (q, k), blocks, sampled, share_BHQK, mass, sparsity_H)
    return Observation(1, loss, torch.stack([token_sparsity_H, *metrics]), list(gradients))


def scores_by_piece(
    low: tuple[Tensor, Tensor], q: Tensor, k: Tensor, blocks: Blocks, sampled: Tensor, mass: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, the heads' sparsity over tokens, and softmax mass of each key cube for each sampled query cube [B, H,
    sampled, K].

    The gradient of the loss goes to the leaves ``low``. All tensors are in the order of cubes.
    """
    low_q, low_k = low
    scale, total = q.shape[-1] ** -0.5, int(blocks.lengths[sampled].sum())
    loss, sparsity_H, shares = q.new_zeros(()), q.new_zeros(q.shape[1]), []
    for rows, cube in pieces(blocks, sampled, q.shape[0] * q.shape[1] * blocks.tokens):
        true = (q[:, :, rows] * scale) @ k.transpose(-1, -2)
        part = score_loss(low_q[:, :, rows] @ low_k.transpose(-1, -2), true) * (len(rows) / total)
        part.backward(inputs=low)
        with torch.no_grad():
            loss += part
            share = true.softmax(-1)
            sparsity_H += profiler.sparsity(share, mass).mean(0).sum(-1) / total
            shares.append(mean_by(profiler.by_key_block(share, blocks), cube))
    return loss, sparsity_H, torch.cat(shares, 2)


def head_metrics(
    low: tuple[Tensor, Tensor],
    qk: tuple[Tensor, Tensor],
    blocks: Blocks,
    sampled: Tensor,
    share_BHQK: Tensor,
    mass: float,
    sparsity_H: Tensor | None,
) -> list[Tensor]:
    """HEAD_METRICS without the first, each [H]: averages over the batch and the sampled query cubes."""
    observed_H = profiler.sparsity(share_BHQK, mass).mean((0, 2))
    at_H = observed_H if sparsity_H is None else sparsity_H
    keep_H = profiler.blocks_to_keep(at_H, blocks.count)
    chosen = low_rank_selection(*low, blocks, blocks, keep_H)
    pooled = pooled_selection(*qk, blocks, blocks, keep_H)
    best = profiler.top_mask(share_BHQK, keep_H)
    ceiling = held_mass(share_BHQK, best)
    mine, other = (s.mask()[:, :, sampled] for s in (chosen, pooled))
    overlap = (mine & best).sum(-1) / best.sum(-1)
    of_heads = (
        held_mass(share_BHQK, mine),
        held_mass(share_BHQK, mine) / ceiling,
        overlap,
        held_mass(share_BHQK, other) / ceiling,
    )
    return [observed_H, *(x.mean((0, 2)) for x in of_heads), chosen.density.mean(0)]


def held_mass(share_BHQK: Tensor, mask_BHQK: Tensor) -> Tensor:
    """Softmax mass in the masked cubes."""
    return (share_BHQK * mask_BHQK).sum(-1)


def sample_blocks(blocks: Blocks, factor: int, generator: torch.Generator) -> Tensor:
    """Random blocks, one in ``factor`` and at least one, ascending."""
    count = max(1, blocks.count // factor)
    chosen = torch.randperm(blocks.count, generator=generator)[:count].sort().values
    return chosen.to(blocks.starts.device)


def pieces(blocks: Blocks, sampled: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of the sampled blocks: their tokens, and for each token the place of its block in the piece.

    Each piece has as many blocks as keep their scores, ``width`` a token, below MAX_SCORES, and at least one.
    """
    step = max(1, MAX_SCORES // (width * blocks.size))
    for part in sampled.split(step):
        lengths = blocks.lengths[part]
        cube = torch.arange(len(part), device=part.device).repeat_interleave(lengths)
        first = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)[:-1]))
        yield torch.arange(len(cube), device=part.device) - first[cube] + blocks.starts[:-1][part][cube], cube


def mean_by(share_BHSK: Tensor, group_S: Tensor) -> Tensor:
    """Mean over the queries of each group, [B, H, groups, K]."""
    counts = torch.bincount(group_S)
    summed = share_BHSK.new_zeros(*share_BHSK.shape[:2], len(counts), share_BHSK.shape[-1])
    return summed.index_add_(2, group_S, share_BHSK) / counts[:, None]


@contextmanager
def own_graph(device: str) -> Iterator[None]:
    """Autograd context apart from the model's.

    It has gradients even where a reentrant checkpoint has turned them off, no autocast, and plain saved tensors, which
    a checkpoint's hooks would discard and recompute.
    """
    keep = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.enable_grad(), torch.autocast(device, enabled=False), keep:
        yield
