"""Sparsity of attention: the fewest keys that hold nine tenths of the softmax (arXiv 2502.07590, sections 3, 5)."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from stepstack.ops.selection import Blocks


def critical(share_QK: Tensor, mass: float) -> Tensor:
    """Mask of the smallest set of largest entries along the last axis that holds ``mass`` of their sum."""
    ranked, order = share_QK.float().sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked
    needed = before < mass * ranked.sum(-1, keepdim=True)
    return torch.zeros_like(needed).scatter_(-1, order, needed)


def sparsity(share_QK: Tensor, mass: float) -> Tensor:
    """Fraction of the entries along the last axis that are not critical."""
    return 1 - critical(share_QK, mass).float().mean(-1)


def by_key_block(share_QS: Tensor, keys: Blocks) -> Tensor:
    """Sum over the tokens of each key block: [..., S] to [..., keys.count]."""
    summed = share_QS.new_zeros(*share_QS.shape[:-1], keys.count)
    return summed.index_add_(-1, keys.block_of_token, share_QS)


def blocks_to_keep(sparsity_H: Tensor, blocks: int) -> list[int]:
    """Number of key blocks that a query block of each head keeps, at least one."""
    return [min(max(ceil((1 - s) * blocks - 1e-4), 1), blocks) for s in sparsity_H.tolist()]  # 0.7 of 10 is 7, not 8


def top_mask(share_BHQK: Tensor, count_H: list[int]) -> Tensor:
    """Mask of the largest ``count`` entries of each row of a head. Ties go to the earlier entry."""
    ranked = share_BHQK.sort(dim=-1, descending=True, stable=True).indices
    counts = torch.tensor(count_H, device=share_BHQK.device).view(-1, 1, 1)
    first = torch.arange(share_BHQK.shape[-1], device=share_BHQK.device) < counts
    return torch.zeros_like(share_BHQK, dtype=torch.bool).scatter_(-1, ranked, first.expand_as(ranked))


def smooth(old: Tensor | None, new: Tensor, weight: float) -> Tensor:
    """Exponential moving average with ``weight`` for the old value. The first value is taken unchanged."""
    return new.clone() if old is None else weight * old + (1 - weight) * new
