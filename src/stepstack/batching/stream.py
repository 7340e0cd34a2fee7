"""The stream of training rows, or of training pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch

from stepstack.batching.pairs import Pair
from stepstack.batching.rows import Row

T = TypeVar("T", Row, Pair)


class RowStream(Generic[T]):
    """Endless epochs over ``rows``, each a permutation of its own, one behind the other and cut into batches: every row
    comes once an epoch. A pure function of (seed, step), so that a resumed run needs no cursor."""

    def __init__(self, rows: Sequence[T], batch: int, seed: int):
        """ValueError without rows."""
        if not rows:
            raise ValueError("no training rows: the data is empty, or every row was left out: look at its log")
        self.rows: Sequence[T] = rows
        self.batch, self.seed = batch, seed
        self._orders: dict[int, list[int]] = {}

    def take(self, step: int) -> list[T]:
        """The rows of a step, with their places in the batch as indices."""
        first = step * self.batch
        return [replace(self._at(first + place), index=place) for place in range(self.batch)]

    def _at(self, number: int) -> T:
        epoch, place = divmod(number, len(self.rows))
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._orders = {epoch: torch.randperm(len(self.rows), generator=generator).tolist()}
        return self.rows[self._orders[epoch][place]]
