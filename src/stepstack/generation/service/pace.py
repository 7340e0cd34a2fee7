"""Modelled durations in real time, so that several "devices" fit on a few cores: what is *paced* really runs, through
the real processes, messages and weights, and only the time of its computation is slept. No torch at run time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from stepstack.generation.types import Generator, Group, Prompt, Rollout, Sampling, response_budget
from stepstack.planning.rollout.curves import DecodeCurve

if TYPE_CHECKING:
    from torch import Tensor

MOST_LATE = 0.05  # share of late deadlines beyond which a paced figure is void

Lengths = Callable[[int, int, int], int]  # (seed, problem index, sample) -> tokens


class Pace:
    """Clock of one modelled device. A deadline is the start plus all seconds so far, so that a sleep that lasts too
    long does not add up. ``deadlines`` counts them, ``late`` those that had passed before the device could sleep."""

    def __init__(self, scale: float = 1.0):
        """``scale``: real seconds for a modelled second."""
        self.scale = scale
        self.deadlines = self.late = 0
        self._due = time.monotonic()

    def start(self) -> None:
        """Let work begin now, after time in which the device had none."""
        self._due = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Sleep until the work that was begun last has taken ``seconds`` modelled seconds."""
        self._due += seconds * self.scale
        self.deadlines += 1
        left = self._due - time.monotonic()
        if left > 0:
            time.sleep(left)
        else:
            self.late += 1


class Paced:
    """Generator with declared lengths and the times of a decode curve: rows of a call decode together, a step of them
    lasts as the curve says, and a group is yielded when its last row ends. Weights are loaded into ``engine``, whose
    limits hold; the tokens are made up (zeros, of log-probability 0), so that nothing can be learned from them."""

    def __init__(self, engine: Generator, curve: DecodeCurve, lengths: Lengths, pace: Pace):
        self.engine, self.curve, self.lengths, self.pace = engine, curve, lengths, pace
        self.version = 0

    @property
    def max_positions(self) -> int:
        return self.engine.max_positions

    def sleep(self) -> None:
        self.engine.sleep()

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.engine.load(weights, version)
        self.version = version

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yield the group of each prompt after as many decode steps as its longest response has tokens."""
        groups = [self._group(prompt, sampling) for prompt in prompts]
        rows = sorted(len(rollout.ids) for group in groups for rollout in group.rollouts)
        active, unfinished = deque(rows), deque(sorted(groups, key=_steps))
        self.pace.start()
        for step in range(1, rows[-1] + 1 if rows else 0):
            self.pace.wait(self.curve.seconds(len(active)))
            while active and active[0] <= step:
                active.popleft()
            while unfinished and _steps(unfinished[0]) <= step:
                yield unfinished.popleft()

    def _group(self, prompt: Prompt, sampling: Sampling) -> Group:
        budget = response_budget(prompt, sampling, self.max_positions)
        index = prompt.problem.index
        wanted = [self.lengths(sampling.seed, index, sample) for sample in range(sampling.n)]
        return Group(
            prompt,
            tuple(
                Rollout(
                    problem=prompt.problem,
                    prompt=prompt,
                    sample=sample,
                    ids=(0,) * min(tokens, budget),
                    logprobs=(0.0,) * min(tokens, budget),
                    finish="stop" if tokens <= budget else "length",
                    version=self.version,
                )
                for sample, tokens in enumerate(wanted)
            ),
        )


def late_share(paces: Iterable[Pace]) -> float:
    """Share of the deadlines of several devices that were late."""
    paces = list(paces)
    return sum(pace.late for pace in paces) / max(1, sum(pace.deadlines for pace in paces))


def _steps(group: Group) -> int:
    return max(len(rollout.ids) for rollout in group.rollouts)
