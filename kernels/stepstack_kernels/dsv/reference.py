"""Specification of block-sparse attention, and the code of CPU training: masked dense attention, a few query blocks at
a time. Differentiable; any float dtype."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SCORES = 1 << 24  # masked scores held at once; a small sequence is one piece


def sparse_attention(
    q_BHSE: Tensor,
    k_BHTE: Tensor,
    v_BHTE: Tensor,
    mask_BHQK: Tensor,
    query_of_S: Tensor,
    key_of_T: Tensor,
    scale: float,
) -> Tensor:
    """Attention o_BHSE = softmax over the keys that a query sees (scale q k^T) v; 0 where it sees none.

    ``mask_BHQK``: bool over blocks. ``query_of_S``, ``key_of_T``: the block of each token, int64. float16 and bfloat16
    are computed in float32.
    """
    dtype = q_BHSE.dtype
    if dtype in (torch.float16, torch.bfloat16):
        q_BHSE, k_BHTE, v_BHTE = q_BHSE.float(), k_BHTE.float(), v_BHTE.float()
    batch, heads, tokens, _ = q_BHSE.shape
    piece = max(1, MAX_SCORES // (batch * heads * k_BHTE.shape[2]))
    pieces = []
    for start in range(0, tokens, piece):
        rows = query_of_S[start : start + piece]
        mask_BHST = mask_BHQK[:, :, rows][..., key_of_T]
        blind_BHS1 = ~mask_BHQK.any(-1)[:, :, rows].unsqueeze(-1)
        # A row that sees nothing attends to all and is then set to 0: softmax of nothing, and its gradient, are NaN.
        out = F.scaled_dot_product_attention(
            q_BHSE[:, :, start : start + piece], k_BHTE, v_BHTE, attn_mask=mask_BHST | blind_BHS1, scale=scale
        )
        pieces.append(out.masked_fill(blind_BHS1, 0))
    return torch.cat(pieces, dim=2).to(dtype)


def block_means(x_BHSE: Tensor, block_of_S: Tensor, lengths_Q: Tensor) -> Tensor:
    """Mean of each block's tokens, float32 [B, H, Q, E]."""
    batch, heads, _, dim = x_BHSE.shape
    sums_BHQE = torch.zeros(batch, heads, len(lengths_Q), dim, dtype=torch.float32, device=x_BHSE.device)
    return sums_BHQE.index_add_(2, block_of_S, x_BHSE.float()) / lengths_Q[:, None]


def block_masses(proxies_BHQU: Tensor, k_BHTU: Tensor, starts: Tensor, scale: float) -> Tensor:
    """Logarithm to base 2 of the sum over a key block's tokens of exp(scale proxy . key), float32 [B, H, Q, K]."""
    scores = [scale * proxies_BHQU @ block.float().mT for block in k_BHTU.split(starts.diff().tolist(), dim=2)]
    return torch.stack([s.logsumexp(-1) for s in scores], dim=-1) / math.log(2)


def top_blocks(scores_RK: Tensor, keep_R: Tensor) -> Tensor:
    """Columns of the ``keep`` highest scores of each row, ascending, row after row, int32. Ties go to the lower
    column."""
    rank_RK = scores_RK.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (rank_RK < keep_R[:, None]).nonzero()[:, 1].int()
