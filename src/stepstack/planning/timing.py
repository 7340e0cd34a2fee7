"""Measured times, and the interpolation between them that planners use. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stepstack.config import Strict


@dataclass(frozen=True, slots=True)
class Link(Strict):
    """Time of one rank's share of a collective over links of one kind.

    Linear between the points, the last slope beyond them, the first time below them, and nothing for no bytes.
    """

    bytes: tuple[float, ...]
    """Bytes moved at each measured point, ascending; two points or more."""
    seconds: tuple[float, ...]
    """Seconds that the bytes of each point took."""

    def __post_init__(self) -> None:
        _ascending("bytes", self.bytes)
        if len(self.bytes) != len(self.seconds) or len(self.bytes) < 2:
            raise ValueError(
                f"a link has {len(self.bytes)} bytes and {len(self.seconds)} seconds: give two points or more, in pairs"
            )
        if self.seconds[0] < 0 or min(np.diff(self.seconds)) < 0:
            raise ValueError("seconds of a link must not fall with bytes, nor be negative: measure the link again")

    @property
    def min_seconds_per_byte(self) -> float:
        """Lower bound of the seconds that a byte takes in any message."""
        points = [second / byte for byte, second in zip(self.bytes, self.seconds, strict=True) if byte]
        return float(min(*points, np.diff(self.seconds)[-1] / np.diff(self.bytes)[-1]))

    def time(self, bytes: ArrayLike) -> NDArray[np.float64]:
        moved = np.asarray(bytes, float)
        (x0, x1), (y0, y1) = self.bytes[-2:], self.seconds[-2:]
        seconds = np.interp(moved, self.bytes, self.seconds)
        if (moved > x1).any():
            seconds = seconds + np.maximum(moved - x1, 0.0) * ((y1 - y0) / (x1 - x0))
        return np.where(moved > 0, seconds, 0.0)


@dataclass(frozen=True, slots=True)
class Attention(Strict):
    """Time of sparse attention of one head over a whole sequence.

    Linear in sparsity, a power law in length, beyond the table as at its edge; above the highest sparsity measured it
    gets no faster, because nobody has seen it.
    """

    lengths: tuple[int, ...]
    """Tokens of the measured sequences, ascending; two or more."""
    sparsities: tuple[float, ...]
    """Measured sparsities in [0, 1], ascending; two or more."""
    seconds: tuple[tuple[float, ...], ...]
    """Seconds ``seconds[i][j]`` at ``lengths[i]`` and ``sparsities[j]``."""

    def __post_init__(self) -> None:
        _ascending("lengths", self.lengths)
        _ascending("sparsities", self.sparsities)
        shape = (len(self.lengths), len(self.sparsities))
        if any(len(row) != shape[1] for row in self.seconds) or len(self.seconds) != shape[0]:
            raise ValueError(f"seconds must have a row for each of the {shape[0]} lengths, of {shape[1]} sparsities")
        if min(shape) < 2 or self.lengths[0] < 1 or self.sparsities[0] < 0 or self.sparsities[-1] > 1:
            raise ValueError("a table needs two lengths above 0 and two sparsities in [0, 1], or more")
        if not np.array(self.seconds).min() > 0 or np.diff(self.seconds).max() > 0:
            raise ValueError("seconds must be above 0 and must not rise with sparsity: measure the table again")

    def time(self, length: float, sparsity: ArrayLike) -> NDArray[np.float64]:
        table, x = np.array(self.seconds), np.asarray(sparsity, float)
        sparse = np.array(self.sparsities)
        at = np.clip(np.searchsorted(sparse, x) - 1, 0, len(sparse) - 2)
        share = np.minimum((x - sparse[at]) / (sparse[at + 1] - sparse[at]), 1.0)
        columns = np.log(table[:, at] * (1 - share) + table[:, at + 1] * share)
        longs = np.log(np.array(self.lengths))
        row = int(np.clip(np.searchsorted(longs, np.log(length)) - 1, 0, len(longs) - 2))
        part = (np.log(length) - longs[row]) / (longs[row + 1] - longs[row])
        return np.exp(columns[row] * (1 - part) + columns[row + 1] * part)


def _ascending(name: str, values: Sequence[float]) -> None:
    if not np.isfinite(values).all() or any(b <= a for a, b in pairwise(values)):
        raise ValueError(f"{name} must be finite and ascend, got {list(values)}: sort the measurements")
