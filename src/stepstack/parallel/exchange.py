"""Exchanges between ranks that share a sequence, with gradients: heads for tokens, tokens for heads, shards for the
whole.

The first two are those of DeepSpeed-Ulysses (arXiv 2309.14509), for uneven shards. Shapes: B batch, H heads, h heads of
a rank, S tokens, s tokens of a rank, D head width. ``heads[i]``: the heads of rank i of the group. ``moved`` counts
bytes to and from other ranks by (what, pass, direction). What is "hcp" for heads and tokens, "whole" for the gathering;
the pass "forward" or "backward"; the direction "sent" or "received".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

Moved = Counter[tuple[str, str, str]]
Heads = Sequence[Sequence[int]]


def to_heads(
    shards: Sequence[Tensor], heads: Heads, tokens: Sequence[Sequence[int]], group: dist.ProcessGroup, moved: Moved
) -> list[Tensor]:
    """Exchange of all heads of this rank's tokens for its heads of all tokens: [B, H, s, E] to [B, h, S, E] of each
    tensor.

    ``tokens[i]``: how many tokens of each tensor rank i has.
    """
    (batch, _, _, dim), mine = shards[0].shape, len(heads[dist.get_rank(group)])
    packed = torch.cat(list(shards), dim=2).transpose(0, 1).index_select(0, _order(heads, shards[0]))  # [H, B, s, D]
    sent = [len(row) * batch * dim * packed.shape[2] for row in heads]
    received = [mine * batch * dim * sum(there) for there in tokens]
    flat = AllToAll.apply(packed.flatten(), sent, received, group, moved, "hcp")
    parts = [
        piece.view(mine, batch, sum(there), dim).split(list(there), dim=2)
        for piece, there in zip(flat.split(received), tokens, strict=True)
    ]
    return [torch.cat(pieces, dim=2).transpose(0, 1).contiguous() for pieces in zip(*parts, strict=True)]


def to_tokens(out_BhSD: Tensor, heads: Heads, tokens: Sequence[int], group: dist.ProcessGroup, moved: Moved) -> Tensor:
    """Inverse of ``to_heads`` for one tensor: this rank's heads of all tokens to all heads of its tokens, [B, H, s,
    D]."""
    batch, mine, _, dim = out_BhSD.shape
    own = tokens[dist.get_rank(group)]
    sent = [mine * batch * dim * there for there in tokens]
    received = [len(row) * batch * dim * own for row in heads]
    packed = torch.cat([piece.flatten() for piece in out_BhSD.transpose(0, 1).split(list(tokens), dim=2)])
    flat = AllToAll.apply(packed, sent, received, group, moved, "hcp")
    order = _order(heads, out_BhSD)
    return flat.view(len(order), batch, own, dim).index_select(0, order.argsort()).transpose(0, 1)


def gather_shards(shard_BsD: Tensor, tokens: Sequence[int], group: dist.ProcessGroup, moved: Moved) -> Tensor:
    """All ranks' shards, [B, S, D], on every rank. The gradient of a shard is the sum over all ranks."""
    batch, _, dim = shard_BsD.shape
    sent, received = [shard_BsD.numel()] * len(tokens), [batch * dim * there for there in tokens]
    flat = AllToAll.apply(shard_BsD.flatten().repeat(len(tokens)), sent, received, group, moved, "whole")
    return torch.cat([p.view(batch, n, dim) for p, n in zip(flat.split(received), tokens, strict=True)], dim=1)


class AllToAll(torch.autograd.Function):
    """Uneven all-to-all of a flat tensor: ``sent[i]`` elements to rank i of the group, ``received[i]`` from it.

    Its adjoint is the same operation with the two exchanged.
    """

    @staticmethod
    def forward(ctx, flat, sent, received, group, moved, what):
        ctx.sizes, ctx.group, ctx.moved, ctx.what = (received, sent), group, moved, what
        return all_to_all(flat, sent, received, group, moved, what)

    @staticmethod
    def backward(ctx, grad):
        sent, received = ctx.sizes
        back = all_to_all(grad, sent, received, ctx.group, ctx.moved, ctx.what, "backward")
        return back, None, None, None, None, None


def all_to_all(
    flat: Tensor,
    sent: list[int],
    received: list[int],
    group: dist.ProcessGroup,
    moved: Moved,
    what: str,
    when: str = "forward",
) -> Tensor:
    """Uneven all-to-all like ``AllToAll``, without gradients."""
    out = flat.new_empty(sum(received))
    dist.all_to_all_single(out, flat.contiguous(), received, sent, group=group)
    own = dist.get_rank(group)
    moved[what, when, "sent"] += (sum(sent) - sent[own]) * flat.element_size()
    moved[what, when, "received"] += (sum(received) - received[own]) * flat.element_size()
    return out


def _order(heads: Heads, like: Tensor) -> Tensor:
    return torch.tensor([head for row in heads for head in row], device=like.device)
