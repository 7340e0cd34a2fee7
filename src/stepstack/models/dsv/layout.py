"""Tokens of a video in cubes, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepstack.models.dsv.predictor import Grid, rope_angles
from stepstack.models.dsv.selectors import cube_order
from stepstack.ops.selection import Blocks


@dataclass(frozen=True, eq=False)
class Layout:
    """``blocks``: the cubes, in whose order the kernels see the tokens. ``angles``: of the predictors' RoPE, in the
    model's order (frames, rows, columns)."""

    grid: Grid
    blocks: Blocks
    order: Tensor
    back: Tensor
    angles: Tensor

    @classmethod
    def of(cls, grid: Grid, cube: Grid, rank: int, device: torch.device) -> Layout:
        order, blocks = cube_order(grid, cube, device)
        return cls(grid, blocks, order, order.argsort(), rope_angles(grid, rank, device=device))

    @property
    def tokens(self) -> int:
        return self.order.shape[0]

    def to_cubes(self, x_BHSD: Tensor) -> Tensor:
        return x_BHSD[:, :, self.order]

    def to_model(self, x_BHSD: Tensor) -> Tensor:
        return x_BHSD[:, :, self.back]
