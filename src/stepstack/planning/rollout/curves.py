"""Measured times of a rollout's two stages: a decode step by batch size, a stage by devices. No torch."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from stepstack.config import Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCurve(Strict):
    """Per-token latency (PTL) of an instance: milliseconds of a decode step by the rows that decode together.

    Linear between the points (StreamRL, arXiv 2504.15930, figure 6), the last slope beyond them, the first time below.
    """

    batch: tuple[PositiveInt, ...]
    """Rows that decode together at each measured point, ascending."""
    milliseconds: tuple[PositiveFloat, ...]
    """Milliseconds of a decode step at each point; they must not fall."""

    def __post_init__(self) -> None:
        _paired("batch", self.batch, "milliseconds", self.milliseconds)
        for (batch, first), (larger, second) in pairwise(zip(self.batch, self.milliseconds, strict=True)):
            if second < first:
                raise ValueError(
                    f"milliseconds: a step of {larger} rows takes {second:g} ms, one of {batch} rows {first:g} ms: a "
                    "larger batch cannot be faster; measure the curve again"
                )

    def seconds(self, rows: float) -> float:
        """Seconds of a decode step of ``rows`` rows."""
        batch, times = self.batch, self.milliseconds
        if len(batch) == 1 or rows <= batch[0]:
            return times[0] / 1e3
        at = min(bisect_right(batch, rows), len(batch) - 1)
        slope = (times[at] - times[at - 1]) / (batch[at] - batch[at - 1])
        return (times[at - 1] + slope * (rows - batch[at - 1])) / 1e3


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCurve(Strict):
    """Seconds of a stage by its devices.

    A power law between the points, and beyond them inversely proportional to the devices, from the nearest point.
    """

    devices: tuple[PositiveInt, ...]
    """Devices at each measured point, ascending."""
    seconds: tuple[PositiveFloat, ...]
    """Seconds at each point."""

    def __post_init__(self) -> None:
        _paired("devices", self.devices, "seconds", self.seconds)

    def at(self, devices: int) -> float:
        """Seconds on so many devices."""
        known, times = self.devices, self.seconds
        if devices <= known[0] or devices >= known[-1]:
            nearest = 0 if devices <= known[0] else -1
            return times[nearest] * known[nearest] / devices
        above = bisect_right(known, devices)
        x0, x1, y0, y1 = known[above - 1], known[above], times[above - 1], times[above]
        return y0 * (devices / x0) ** _exponent(x0, x1, y0, y1)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTraining(StageCurve):
    """Seconds of training on all rows of an iteration, by devices."""

    type: Literal["step"] = "step"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTraining(StageCurve):
    """Seconds of training on one response token, all models and passes together, by devices."""

    type: Literal["token"] = "token"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageGeneration(StageCurve):
    """Seconds of generating all rows of an iteration, by devices: enough to share devices out, not to simulate."""

    type: Literal["step"] = "step"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeGeneration(DecodeCurve):
    """Generation by instances that batch continuously."""

    type: Literal["decode"] = "decode"
    cap: PositiveInt
    """Rows that an instance decodes together at most: what its KV cache holds."""
    instance_devices: PositiveInt = 1
    """Devices of an instance, which is one data-parallel unit."""


def _exponent(x0: float, x1: float, y0: float, y1: float) -> float:
    return math.log(y1 / y0) / math.log(x1 / x0)


def _paired(name: str, points: Sequence[int], other: str, values: Sequence[float]) -> None:
    if not points:
        raise ValueError(f"{name} is empty: give a measured point or more")
    if len(points) != len(values):
        raise ValueError(f"{name} has {len(points)} points and {other} {len(values)}: give them in pairs")
    if any(b <= a for a, b in pairwise(points)):
        raise ValueError(f"{name} must ascend, got {list(points)}: sort the measurements")
