"""Low-rank predictors of attention scores: DSV's approximation of Q K^T (arXiv 2502.07590, section 5.2).

The paper projects the block's input. A projection without positions cannot reproduce the effect of RoPE on the scores,
so here the low-rank q and k are rotated as well (docs/dsv.md has the measurement).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepstack.models.video.dsv.config import rope_split
from stepstack.models.video.grid import Grid

COSINE, NORM = 0.95, 0.05  # weights of the two parts of the loss


def rope_angles(grid: Grid, rank: int, base: float = 1e4, device: torch.device | str = "cpu") -> Tensor:
    """Angle of each rotated pair at each token, [frames * rows * columns, rank / 2], fp32."""
    parts = []
    for axis, width in enumerate(rope_split(rank)):
        pairs = torch.arange(width // 2, device=device, dtype=torch.float32)
        place = torch.arange(grid[axis], device=device, dtype=torch.float32)
        angles = place[:, None] * base ** (-2 * pairs / width)
        shape = [1, 1, 1, width // 2]
        shape[axis] = grid[axis]
        parts.append(angles.view(shape).expand(*grid, -1))
    return torch.cat(parts, -1).flatten(0, 2)


def rotate(x_BHSU: Tensor, angles_SP: Tensor) -> Tensor:
    """Pairs (x_p, x_{p + R/2}) turned by the angles of their token."""
    a, b = x_BHSU.chunk(2, -1)
    cos, sin = angles_SP.cos(), angles_SP.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def project(x_BSC: Tensor, weight_OC: Tensor, heads: int, angles_SP: Tensor) -> Tensor:
    """Low-rank q or k with its position, [B, heads, S, rank]."""
    low_BHSU = F.linear(x_BSC, weight_OC).unflatten(-1, (heads, -1)).transpose(1, 2)
    return rotate(low_BHSU, angles_SP)


def score_loss(low_QS: Tensor, true_QS: Tensor, eps: float = 1e-8) -> Tensor:
    """Mean over queries of 0.95 (1 - cosine) + 0.05 |low - true|^2 / |true|^2 of the scores over all keys.

    Shapes [..., queries, keys], fp32. The paper names only the parts and their weights. The second part is the squared
    error of scores normalised by the length of the true ones. It gives the predicted scores their scale, without which
    their softmax means nothing.
    """
    dot, true_square = (low_QS * true_QS).sum(-1), true_QS.square().sum(-1)
    cosine = dot / (low_QS.square().sum(-1) * true_square).clamp_min(eps**2).sqrt()
    norm = (low_QS - true_QS).square().sum(-1) / true_square.clamp_min(eps)
    return (COSINE * (1 - cosine) + NORM * norm).mean()


class LowRankPredictor(nn.Module):
    """Weights W_Q^lr and W_K^lr of one attention, [heads * rank, dim] each.

    They require no gradient, so the model's optimizer, DDP and gradient clipping ignore them. ``Dsv`` trains them.
    """

    def __init__(self, dim: int, heads: int, rank: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.heads, self.rank = heads, rank
        self.query, self.key = (
            nn.Parameter(torch.randn(heads * rank, dim, device=device) * dim**-0.5, requires_grad=False)
            for _ in range(2)
        )

    def forward(self, x_BSC: Tensor, angles_SP: Tensor) -> tuple[Tensor, Tensor]:
        """Low-rank q and k, fp32 [B, heads, S, rank]."""
        return low_rank(x_BSC, self.query, self.key, self.heads, angles_SP)


def low_rank(x_BSC: Tensor, query_OC: Tensor, key_OC: Tensor, heads: int, angles_SP: Tensor) -> tuple[Tensor, Tensor]:
    """Low-rank q and k by the given weights."""
    x_BSC = x_BSC.float()
    return project(x_BSC, query_OC.float(), heads, angles_SP), project(x_BSC, key_OC.float(), heads, angles_SP)
