"""Layout of one size of video: its cubes, and the angles of its tokens in the predictors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepstack.models.video.dsv.predictor import rope_angles
from stepstack.models.video.grid import Grid
from stepstack.ops.cubes import Cubes
from stepstack.ops.selection import Blocks


@dataclass(frozen=True, eq=False)
class CubeLayout:
    """Cubes of a grid. ``angles`` [S, rank / 2] are in the model's order: frames, rows, columns."""

    grid: Grid
    cubes: Cubes
    angles: Tensor

    @classmethod
    def build(cls, grid: Grid, cube: Grid, rank: int, device: torch.device) -> CubeLayout:
        return cls(grid, Cubes.build(grid, cube, device), rope_angles(grid, rank, device=device))

    @property
    def blocks(self) -> Blocks:
        return self.cubes.blocks

    @property
    def tokens(self) -> int:
        return self.angles.shape[0]

    def to_cubes(self, x_BHSE: Tensor) -> Tensor:
        return self.cubes.gather(x_BHSE, dim=2)

    def to_model(self, x_BHSE: Tensor) -> Tensor:
        return self.cubes.scatter(x_BHSE, dim=2)
