"""The specification of block-sparse attention, and what CPU training runs: masked dense attention, a few query blocks
at a time. Differentiable; any float dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES = 1 << 24  # of masked scores held at once; the whole of a small sequence goes in one piece


def sparse_attention(
    q_BHSD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    mask_BHQK: Tensor,
    query_of_S: Tensor,
    key_of_T: Tensor,
    scale: float,
) -> Tensor:
    """o_BHSD = softmax over the keys that a query sees (scale q k^T) v; 0 where it sees none.

    ``mask_BHQK``: bool over blocks; ``query_of_S``, ``key_of_T``: the block of each token, int64.
    """
    batch, heads, tokens, _ = q_BHSD.shape
    piece = max(1, SCORES // (batch * heads * k_BHTD.shape[2]))
    pieces = []
    for start in range(0, tokens, piece):
        rows = query_of_S[start : start + piece]
        mask_BHST = mask_BHQK[:, :, rows][..., key_of_T]
        blind_BHS1 = ~mask_BHQK.any(-1)[:, :, rows].unsqueeze(-1)
        # A row that sees nothing is let see all and then set to 0: softmax of nothing, and its gradient, are NaN.
        out = F.scaled_dot_product_attention(
            q_BHSD[:, :, start : start + piece], k_BHTD, v_BHTD, attn_mask=mask_BHST | blind_BHS1, scale=scale
        )
        pieces.append(out.masked_fill(blind_BHS1, 0))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
