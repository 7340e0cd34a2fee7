"""Algorithm 2 of StreamRL: long prompts get instances of their own. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepstack.planning.rollout.curves import DecodeCurve
from stepstack.planning.rollout.generation import instance_seconds

Objective = Literal["max", "paper"]
LONG_SHARE = 0.2  # alpha of the paper


@dataclass(frozen=True, slots=True)
class Split:
    """Instances of the long and of the regular prompts, the number of long prompts, and the seconds that equation 2
    gives for either part."""

    long_instances: int
    regular_instances: int
    long_prompts: int
    long_seconds: float
    regular_seconds: float


def long_count(prompts: int, share: float) -> int:
    """Prompts in the long part: ``share`` of all, rounded up."""
    return math.ceil(share * prompts - 1e-9)


def part_seconds(prompts: int, length: float, instances: int, cap: int, curve: DecodeCurve) -> float:
    """Equation 2 for a part that is spread evenly: seconds of the instance with the most prompts."""
    return instance_seconds(math.ceil(prompts / instances), length, cap, curve)


def split(
    prompts: int,
    instances: int,
    long_length: float,
    regular_length: float,
    cap: int,
    curve: DecodeCurve,
    share: float = LONG_SHARE,
    objective: Objective = "max",
) -> Split:
    """Algorithm 2: N_l + N_r = ``instances`` that minimise the time of the two parts.

    The longest ``share`` of the prompts count as ``long_length`` tokens each (P90 of recent lengths), the others as
    ``regular_length`` (P50). ``objective`` "paper" adds the seconds of the parts, "max" takes the slower one, which is
    when the last prompt ends. Of equal splits that with the fewest long instances. ValueError below two instances.
    """
    if instances < 2:
        raise ValueError("long prompts need an instance of their own beside the others: give two instances or more")
    many = long_count(prompts, share)
    splits = []
    for n in range(1, instances):
        long_seconds = part_seconds(many, long_length, n, cap, curve)
        regular_seconds = part_seconds(prompts - many, regular_length, instances - n, cap, curve)
        splits.append(Split(n, instances - n, many, long_seconds, regular_seconds))
    return min(splits, key=lambda one: seconds(one, objective))


def seconds(one: Split, objective: Objective) -> float:
    """Value of a split by an objective, in seconds."""
    parts: Sequence[float] = (one.long_seconds, one.regular_seconds)
    return sum(parts) if objective == "paper" else max(parts)
