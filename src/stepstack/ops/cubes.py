"""Order of a video's tokens in which every cube of frames x height x width is one run of tokens.

Neighbours in a cube share most of their critical keys (DSV, arXiv 2502.07590, section 3), so a cube is a block. At the
far borders cubes are smaller, and nothing is padded. The gather is torch's ``index_select``, whose rows of a token's
features are long enough to move at memory bandwidth: once before the first layer, once after the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepstack.ops.selection import Blocks, offsets_of


@dataclass(frozen=True, eq=False)
class Cubes:
    """Permutation of a video's tokens into cubes.

    ``order`` int64 [tokens]: the token, in (frame, row, column) order, at each place. ``place`` is its inverse.
    ``blocks``: one per cube, cubes in (frame, row, column) order.
    """

    order: Tensor
    place: Tensor
    blocks: Blocks

    @classmethod
    def build(
        cls, video: tuple[int, int, int], cube: tuple[int, int, int] = (4, 4, 4), device: torch.device | str = "cpu"
    ) -> Cubes:
        """Cubes of a ``video`` = (frames, height, width) in tokens.

        ``cube``: its sides, of at most 128 tokens for the kernels' best tiles. ValueError for a side below 1.
        """
        if min(*video, *cube) < 1:
            raise ValueError(f"sides of a video and of a cube are at least 1, not {video=} {cube=}")
        counts = [-(-side // edge) for side, edge in zip(video, cube, strict=True)]
        axes = [torch.arange(side, device=device) // edge for side, edge in zip(video, cube, strict=True)]
        cube_FYX = (axes[0][:, None, None] * counts[1] + axes[1][:, None]) * counts[2] + axes[2]
        order = torch.argsort(cube_FYX.flatten(), stable=True)
        lengths = torch.bincount(cube_FYX.flatten(), minlength=counts[0] * counts[1] * counts[2])
        place = torch.empty_like(order)
        place[order] = torch.arange(order.shape[0], device=device)
        size = min(video[0], cube[0]) * min(video[1], cube[1]) * min(video[2], cube[2])
        return cls(order, place, Blocks(offsets_of(lengths), size))

    def gather(self, x: Tensor, dim: int = 1) -> Tensor:
        """Tokens from (frame, row, column) order into cubes."""
        return x.index_select(dim, self.order)

    def scatter(self, x: Tensor, dim: int = 1) -> Tensor:
        """Tokens from cubes back into (frame, row, column) order."""
        return x.index_select(dim, self.place)
