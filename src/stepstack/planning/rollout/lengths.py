"""Response lengths of a workload: a law, a histogram, a list, or what a run's evaluations measured. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from stepstack.bounds import Text
from stepstack.config import ROOT, RUNS, ConfigError, Strict
from stepstack.report import jsonl

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LogNormalLengths(Strict):
    """Log-normal lengths; what would be longer than the longest response is cut off there."""

    type: Literal["lognormal"] = "lognormal"
    median: PositiveFloat
    """Tokens of the median response."""
    sigma: PositiveFloat
    """Standard deviation of the logarithm of the length."""
    longest: PositiveInt
    """Tokens at which a response is cut off."""

    def quantiles(self, shares: ArrayLike) -> Counts:
        """Tokens at shares in (0, 1) of the distribution, at least 1."""
        normal = NormalDist(float(np.log(self.median)), self.sigma)
        logs = np.array([normal.inv_cdf(share) for share in np.atleast_1d(shares).tolist()])
        return np.clip(np.rint(np.exp(np.minimum(logs, np.log(self.longest)))), 1, self.longest).astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class HistogramLengths(Strict):
    """Histogram of lengths; within a bin all lengths are equally likely."""

    type: Literal["histogram"] = "histogram"
    upto: tuple[PositiveInt, ...]
    """Largest length of each bin in tokens, ascending; the first bin begins at 1."""
    counts: tuple[NonNegativeFloat, ...]
    """Responses in each bin, as numbers or shares."""

    def __post_init__(self) -> None:
        if len(self.upto) != len(self.counts):
            raise ValueError(f"upto has {len(self.upto)} bins and counts {len(self.counts)}: give one count a bin")
        if any(b <= a for a, b in pairwise(self.upto)):
            raise ValueError(f"upto must ascend, got {list(self.upto)}: sort the bins")
        if not sum(self.counts) > 0:  # also where there is no bin
            raise ValueError("counts: no bin holds a response; count some")

    def quantiles(self, shares: ArrayLike) -> Counts:
        """Tokens at shares in (0, 1) of the distribution, at least 1."""
        filled = np.concatenate([[0.0], np.cumsum(self.counts)]) / sum(self.counts)
        tokens = np.interp(np.atleast_1d(shares), filled, np.concatenate([[0.0], self.upto]))
        return np.maximum(np.ceil(tokens - 1e-9), 1).astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedLengths(Strict):
    """Measured lengths, each as likely as the others."""

    type: Literal["list"] = "list"
    tokens: tuple[PositiveInt, ...]
    """Tokens of each response."""

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("tokens is empty: give a length or more")

    def quantiles(self, shares: ArrayLike) -> Counts:
        """Tokens at shares in (0, 1) of the distribution."""
        return _of_samples(np.array(self.tokens), shares)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLengths(Strict):
    """Lengths of the responses that a run's evaluations kept, in tokens."""

    type: Literal["run"] = "run"
    run: Text
    """Name of a run in runs/, or the path of its folder."""
    when: Text = "after"
    """Folder of its evaluations: before, after, or another below the run's evals/."""

    def quantiles(self, shares: ArrayLike) -> Counts:
        """Tokens at shares in (0, 1) of the distribution. ConfigError where the run kept no responses."""
        return _of_samples(np.array(run_lengths(self.run, self.when)), shares)


LengthSource = Annotated[LogNormalLengths | HistogramLengths | ListedLengths | RunLengths, Field(discriminator="type")]


def run_lengths(run: str, when: str = "after") -> list[int]:
    """Tokens of every response in a run's samples.jsonl that has some; requests that failed are left out.

    A run keeps its evaluations' responses (evals/WHEN/TASK/samples.jsonl); of its training rollouts metrics.jsonl has
    only the means. ConfigError where the folder is not there or holds no response.
    """
    folder = Path(run) if "/" in run else ROOT / RUNS / run
    if not folder.is_dir():
        raise ConfigError(f"lengths.run = {run!r}: {folder} does not exist: give the name of a run, or its folder")
    files = sorted((folder / "evals" / when).glob("*/samples.jsonl"))
    tokens: list[int] = []
    for file in files:
        for number, row in enumerate(jsonl.read_whole(file), 1):
            if row.get("finish") == "error":
                continue
            length = row.get("tokens")
            if not isinstance(length, int):
                raise jsonl.JsonError(f"{file}:{number}: tokens = {length!r}: must be a whole number; make it anew")
            tokens += [length] if length > 0 else []
    if not tokens:
        there = sorted(
            path.parent.relative_to(folder / "evals") for path in (folder / "evals").glob("*/*/samples.jsonl")
        )
        choices = ", ".join(dict.fromkeys(path.parts[0] for path in there)) or "none"
        raise ConfigError(
            f"lengths.when = {when!r}: {folder} holds no responses in evals/{when}: evaluate the run (stepstack eval), "
            f"or name one that does ({choices})"
        )
    return tokens


def evenly(lengths: LengthSource, count: int) -> Counts:
    """``count`` lengths that stand for the distribution, descending: its quantiles in the middle of equal shares."""
    return lengths.quantiles((np.arange(count, 0, -1) - 0.5) / count)


def _of_samples(tokens: Counts, shares: ArrayLike) -> Counts:
    ordered = np.sort(tokens)
    at = np.ceil(np.atleast_1d(shares) * len(ordered)).astype(np.int64) - 1
    return ordered[np.clip(at, 0, len(ordered) - 1)]
