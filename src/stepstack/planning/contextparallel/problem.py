"""Input of the planner: machines, the blocks of a sample, and the sparsity of each layer's heads. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from stepstack.config import Strict
from stepstack.planning.timing import Attention, Link


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster(Strict):
    """Ranks that share a sample, and what was measured on them."""

    ranks: PositiveInt
    """Ranks that share a sample."""
    ranks_per_node: PositiveInt
    """Ranks in one node."""
    memory: PositiveFloat
    """Bytes that a rank has for the tensors of one layer's attention."""
    intra: Link
    """Times of transfers between ranks of a node."""
    inter: Link
    """Times of transfers between nodes."""
    compute: Attention
    """Times of a head's attention, all passes of ``PlanOptions`` together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions(Strict):
    """How a plan is searched."""

    passes: PositiveInt = 2
    """Number of times that bytes move: 2, forward and its adjoint, in training."""
    exact: NonNegativeInt = 20_000
    """Assignments of heads up to which all are tried; where there are more, a local search is made."""
    restarts: NonNegativeInt = 16
    """Starts of the local search that are drawn, beside two greedy ones."""
    seed: NonNegativeInt = 0
    """Seed of the starts that are drawn."""
    shapes: tuple[tuple[PositiveInt, PositiveInt], ...] | None = None
    """Shapes (hcp, scp) of the grid of ranks that are tried; null: all that the ranks allow."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Cut of the sequence into blocks and of the blocks into one shard a rank.

    ``queries`` and ``keys``: tokens of each block. Shards of k consecutive ranks are the shards of a layout with a k-th
    of the ranks.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    ranks: int

    def __post_init__(self) -> None:
        if self.ranks < 1 or min(len(self.queries), len(self.keys)) < self.ranks:
            raise ValueError(
                f"{len(self.queries)} query and {len(self.keys)} key blocks cannot be cut for {self.ranks} ranks: "
                "each needs a block of both; take fewer ranks or smaller blocks"
            )

    def blocks(self, kind: Literal["queries", "keys"], rank: int) -> range:
        """Blocks of a rank's shard."""
        count = len(self.queries if kind == "queries" else self.keys)
        return range(rank * count // self.ranks, (rank + 1) * count // self.ranks)

    def shard_sizes(self, kind: Literal["queries", "keys"]) -> list[int]:
        """Tokens in each rank's shard."""
        sizes = self.queries if kind == "queries" else self.keys
        shards = (self.blocks(kind, rank) for rank in range(self.ranks))
        return [sum(sizes[shard.start : shard.stop]) for shard in shards]

    def tokens(self, kind: Literal["queries", "keys"], rank: int) -> range:
        """Tokens of the sequence in a rank's shard."""
        sizes = self.queries if kind == "queries" else self.keys
        blocks = self.blocks(kind, rank)
        start = sum(sizes[: blocks.start])
        return range(start, start + sum(sizes[blocks.start : blocks.stop]))


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Attended keys of each rank's queries, for B samples and H heads.

    ``pairs`` [B, H, N]: number of (query, key) token pairs that are kept. ``need`` [B, H, N, K]: for each of K key
    blocks the share that some query of the shard keeps, 0 or 1 where the lists are known.
    """

    pairs: Array
    need: Array

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_], layout: BlockLayout) -> Layer:
        """Layer of a selection: ``mask`` [B, H, query blocks, key blocks] is true where the block of keys is kept."""
        if mask.ndim != 4 or mask.shape[2:] != (len(layout.queries), len(layout.keys)):
            raise ValueError(
                f"mask {list(mask.shape)} must be [samples, heads, {len(layout.queries)} query blocks, "
                f"{len(layout.keys)} key blocks]"
            )
        starts = [layout.blocks("queries", rank).start for rank in range(layout.ranks)]
        rows = mask @ np.array(layout.keys, float) * np.array(layout.queries, float)
        return cls(np.add.reduceat(rows, starts, axis=2), np.logical_or.reduceat(mask, starts, axis=2).astype(float))

    @classmethod
    def from_sparsity(cls, sparsity: Sequence[float], layout: BlockLayout) -> Layer:
        """Layer of a profile of heads: every query of a head keeps the same ``1 - sparsity`` of all keys, spread
        evenly.

        It is the assumption of the formulas in v1. Queries that differ need more remote KV than this estimate.
        """
        density = 1.0 - np.array(sparsity, float)
        if density.ndim != 1 or not (density.size and density.min() >= 0 and density.max() <= 1):
            raise ValueError(f"sparsity must be one number in [0, 1] a head, got {list(sparsity)}")
        queries = np.array(layout.shard_sizes("queries"), float)
        pairs = density[:, None] * queries * sum(layout.keys)
        need = np.broadcast_to(density[:, None, None], (len(density), layout.ranks, len(layout.keys)))
        return cls(pairs[None], need[None])

    @property
    def burdens(self) -> Array:
        """Cost of each head [H] wherever it is placed, proportional to 1 - sparsity."""
        return self.pairs.sum(axis=(0, 2))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Profile:
    """Layers to plan for. ``element_bytes``: size of an element of q, k and v."""

    layout: BlockLayout
    head_dim: PositiveInt
    layers: tuple[Layer, ...]
    element_bytes: PositiveInt = 2


Inner = Literal["hcp", "scp"]  # whose groups are neighbouring ranks, and so share a node if they fit


Array = NDArray[np.float64]
