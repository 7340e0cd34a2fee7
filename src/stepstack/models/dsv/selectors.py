"""Key blocks for every query block, from low-rank or from pooled scores."""

from __future__ import annotations

import torch
from torch import Tensor

from stepstack.models.dsv.profiler import top_mask
from stepstack.ops.selection import Blocks, Selection


def cube_order(grid, cube, device="cpu"):
    f, h, w = (torch.arange(n, device=device) for n in grid)
    F, H, W = torch.meshgrid(f, h, w, indexing="ij")
    nh, nw = -(-grid[1] // cube[1]), -(-grid[2] // cube[2])
    ident = ((F // cube[0]) * nh + H // cube[1]) * nw + W // cube[2]
    ident = ident.flatten()
    order = torch.sort(ident, stable=True).indices
    counts = torch.bincount(ident)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    return order, Blocks(starts, int(counts.max()))


def block_mean(x_BHSD: Tensor, blocks: Blocks) -> Tensor:
    summed = x_BHSD.new_zeros(*x_BHSD.shape[:2], blocks.count, x_BHSD.shape[-1])
    return summed.index_add_(2, blocks.of_token, x_BHSD) / blocks.lengths[:, None]


def low_rank_selection(low_q, low_k, blocks, _k, keep_H):
    scores = block_mean(low_q, blocks) @ low_k.transpose(-1, -2)
    top = scores.amax(-1, keepdim=True)
    summed = scores.new_zeros(*scores.shape[:-1], blocks.count)
    summed.index_add_(-1, blocks.of_token, (scores - top).exp())
    return Selection.from_mask(top_mask(summed.log(), keep_H), blocks, blocks)


def pooled_selection(q, k, blocks, _k, keep_H):
    scores = block_mean(q, blocks) @ block_mean(k, blocks).transpose(-1, -2)
    return Selection.from_mask(top_mask(scores, keep_H), blocks, blocks)
