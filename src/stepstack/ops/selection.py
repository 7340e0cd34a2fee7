"""Blocks of a sequence, and for each query block a list of the key blocks that it sees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """Sequence cut into consecutive blocks: block i holds tokens ``starts[i]`` up to ``starts[i+1]``.

    Blocks may differ in length (the cubes at a video's border are smaller), so nothing is ever padded. ``starts``:
    int32 [n+1], strictly increasing from 0. ``size``: upper bound of a block's length.
    """

    starts: Tensor
    size: int

    @classmethod
    def even(cls, tokens: int, size: int, device: torch.device | str = "cpu") -> Self:
        """Blocks of ``size`` tokens, of which the last one may be shorter."""
        if tokens < 1 or size < 1:
            raise ValueError(f"blocks need at least one token and a size of at least 1, not {tokens=} {size=}")
        count = -(-tokens // size)
        starts = torch.arange(count + 1, dtype=torch.int32, device=device) * size
        blocks = cls(starts.clamp_(max=tokens), size)
        blocks.__dict__["tokens"] = tokens
        return blocks

    @property
    def count(self) -> int:
        return self.starts.shape[0] - 1

    @cached_property
    def tokens(self) -> int:
        """Length of the sequence. The first call waits for the device, unless ``even`` made the blocks."""
        return int(self.starts[-1])

    @property
    def lengths(self) -> Tensor:
        """Tokens of each block, int32 [n]."""
        return self.starts.diff()

    @cached_property
    def block_of_token(self) -> Tensor:
        """Block of each token, int64 [tokens]."""
        blocks = torch.arange(self.count, device=self.starts.device)
        return blocks.repeat_interleave(self.lengths, output_size=self.tokens)

    def check(self, name: str = "blocks") -> None:
        """Raise ValueError unless ``starts`` is valid. Waits for the device."""
        if self.starts.dtype != torch.int32 or self.starts.ndim != 1 or self.starts.shape[0] < 2:
            kind = f"{self.starts.dtype} {list(self.starts.shape)}"
            raise ValueError(f"{name}.starts must be int32 [blocks + 1] with at least one block, not {kind}")
        starts = self.starts.tolist()
        lengths = [b - a for a, b in pairwise(starts)]
        if starts[0] != 0 or min(lengths) < 1:
            raise ValueError(f"{name}.starts must begin at 0 and increase strictly: build it from lengths above 0")
        if max(lengths) > self.size:
            raise ValueError(
                f"{name}: block {lengths.index(max(lengths))} has {max(lengths)} tokens, over {self.size=}"
            )


@dataclass(frozen=True, eq=False)
class Selection:
    """Ascending list of key blocks for each batch, head and query block (CSR).

    Lists may differ in length. An empty list is legal: the output and gradients of those queries are 0. Row r = (b *
    heads + h) * queries.count + i holds ``indices[offsets[r] : offsets[r+1]]``. ``offsets``: int32 or int64 [batch *
    heads * queries.count + 1]. ``indices``: int32 [offsets[-1]].
    """

    queries: Blocks
    keys: Blocks
    batch: int
    heads: int
    offsets: Tensor
    indices: Tensor

    @classmethod
    def from_mask(cls, mask_BHQK: Tensor, queries: Blocks, keys: Blocks) -> Self:
        """Selection of a bool mask over blocks, True where attended. ValueError for another dtype or shape."""
        batch, heads, rows, columns = mask_BHQK.shape
        if mask_BHQK.dtype != torch.bool or (rows, columns) != (queries.count, keys.count):
            shape = f"[batch, heads, {queries.count}, {keys.count}]"
            raise ValueError(f"the mask must be bool {shape}, not {mask_BHQK.dtype} {list(mask_BHQK.shape)}")
        counts_R = mask_BHQK.sum(-1, dtype=torch.int32).flatten()
        indices = mask_BHQK.reshape(-1, columns).nonzero()[:, 1].int()
        return cls(queries, keys, batch, heads, offsets_of(counts_R), indices)

    @classmethod
    def dense(cls, queries: Blocks, keys: Blocks, batch: int, heads: int) -> Self:
        """Selection in which every query block sees every key block."""
        mask = torch.ones(batch, heads, queries.count, keys.count, dtype=torch.bool, device=queries.starts.device)
        return cls.from_mask(mask, queries, keys)

    @property
    def rows(self) -> int:
        return self.batch * self.heads * self.queries.count

    @property
    def counts(self) -> Tensor:
        """Key blocks of each row, [rows]."""
        return self.offsets.diff()

    @cached_property
    def row_of(self) -> Tensor:
        """Row of each entry of ``indices``, int64."""
        entries = torch.arange(self.indices.shape[0], device=self.indices.device)
        return torch.searchsorted(self.offsets, entries.to(self.offsets.dtype), right=True) - 1

    def mask(self) -> Tensor:
        """Bool mask over blocks, [batch, heads, queries, keys]."""
        flat = torch.zeros(self.rows, self.keys.count, dtype=torch.bool, device=self.indices.device)
        flat[self.row_of, self.indices.long()] = True
        return flat.view(self.batch, self.heads, self.queries.count, self.keys.count)

    @cached_property
    def density(self) -> Tensor:
        """Fraction of all (query token, key token) pairs that are computed, float32 [batch, heads]."""
        pairs = torch.zeros(self.rows, dtype=torch.float32, device=self.indices.device)
        pairs.index_add_(0, self.row_of, self.keys.lengths[self.indices.long()].float())
        pairs_BHQ = pairs.view(self.batch, self.heads, self.queries.count) * self.queries.lengths
        return pairs_BHQ.sum(-1) / (self.queries.tokens * self.keys.tokens)

    @cached_property
    def order(self) -> Tensor:
        """Order in which rows are handed out to programs: longest list first, otherwise ascending, int32 [rows].

        Heads stay together.
        """
        return torch.argsort(self.counts, descending=True, stable=True).int()

    @cached_property
    def inverse(self) -> Selection:
        """Transposed lists: the query blocks that see each key block.

        They are built once, without waiting for the device, because every backward pass uses them.
        """
        head, query = self.row_of // self.queries.count, self.row_of % self.queries.count
        target, order = torch.sort(head * self.keys.count + self.indices, stable=True)
        rows = self.batch * self.heads * self.keys.count
        edges = torch.arange(rows + 1, device=target.device)
        offsets = torch.searchsorted(target, edges, out_int32=True)
        transposed = Selection(self.keys, self.queries, self.batch, self.heads, offsets, query[order].int())
        transposed.__dict__["inverse"] = self
        return transposed

    def check(self) -> None:
        """Raise ValueError for the first fault: a dtype, a device, an index out of range, a list that is not strictly
        ascending, a head without keys.

        Waits for the device. A selection that has passed is not checked again.
        """
        _ = self._passed

    @cached_property
    def _passed(self) -> bool:
        self.queries.check("queries")
        self.keys.check("keys")
        self._check_layout()
        counts_R, entries = self.counts, self.indices.shape[0]
        if int(self.offsets[0]) != 0 or int(counts_R.min()) < 0 or int(self.offsets[-1]) != entries:
            raise ValueError(f"offsets must begin at 0, not decrease, and end at the number of indices, {entries}")
        indices, row_of = self.indices, self.row_of
        wrong = ((indices < 0) | (indices >= self.keys.count)).nonzero()
        if len(wrong):
            at = int(wrong[0])
            where = self._place(int(row_of[at]))
            raise ValueError(f"{where}: key block {int(indices[at])} is not among 0..{self.keys.count - 1}")
        wrong = ((indices.diff() <= 0) & (row_of.diff() == 0)).nonzero()
        if len(wrong):
            at = int(wrong[0])
            pair = f"{int(indices[at])}, {int(indices[at + 1])}"
            raise ValueError(f"{self._place(int(row_of[at]))}: key blocks must ascend without duplicates, not {pair}")
        keyless = (counts_R.view(-1, self.queries.count).sum(-1) == 0).nonzero()
        if len(keyless):
            b, h = divmod(int(keyless[0]), self.heads)
            raise ValueError(f"batch {b}, head {h} has no keys at all: every list of the head is empty")
        return True

    def _check_layout(self) -> None:
        if self.indices.dtype != torch.int32 or self.indices.ndim != 1:
            raise ValueError(f"indices must be int32 [entries], not {self.indices.dtype} {list(self.indices.shape)}")
        if self.offsets.dtype not in (torch.int32, torch.int64) or self.offsets.shape != (self.rows + 1,):
            kind = f"{self.offsets.dtype} {list(self.offsets.shape)}"
            shape = f"[batch * heads * query blocks + 1 = {self.rows + 1}]"
            raise ValueError(f"offsets must be int32 or int64 {shape}, not {kind}")
        parts = {"offsets": self.offsets, "queries": self.queries.starts, "keys": self.keys.starts}
        for name, part in parts.items():
            if part.device != self.indices.device:
                raise ValueError(f"{name} is on {part.device}, indices on {self.indices.device}")

    def _place(self, row: int) -> str:
        head, query = divmod(row, self.queries.count)
        return f"batch {head // self.heads}, head {head % self.heads}, query block {query}"


def offsets_of(counts_R: Tensor) -> Tensor:
    """CSR offsets int32 [R+1] from the length of each list."""
    offsets = torch.zeros(counts_R.shape[0] + 1, dtype=torch.int32, device=counts_R.device)
    torch.cumsum(counts_R, 0, dtype=torch.int32, out=offsets[1:])
    return offsets
