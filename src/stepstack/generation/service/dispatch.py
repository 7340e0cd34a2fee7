"""The planner's dispatch policies on the units of a run: which waiting unit a worker gets. No torch.

A policy sees a unit as one row, since a worker decodes one unit at a time, and all its prompts together: the unit ends
with its longest response. Equation 2 then counts units, and whatever a decode step of a unit takes is a factor of both
parts of algorithm 2, so that the split needs neither a decode curve nor a cap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from stepstack.generation.service.buffer import WorkUnit
from stepstack.generation.service.config import RankedLength, RankedLongest, StreamDispatch
from stepstack.generation.types import Prompt
from stepstack.planning.rollout.curves import DecodeCurve
from stepstack.planning.rollout.dispatch import (
    RECENT,
    Dispatcher,
    Fifo,
    FifoDispatch,
    History,
    HistoryDispatch,
    LengthSplit,
    LongestFirst,
    OracleDispatch,
    RandomDispatch,
    RandomHomes,
    SiblingDispatch,
    StealDispatch,
    Stealing,
    Unit,
)

ONE_UNIT = DecodeCurve(batch=(1,), milliseconds=(1.0,))  # any time will do, see above

Rank = Callable[[Sequence[Prompt]], Sequence[float]]  # tokens, or anything that ascends with them


class UnitDispatch:
    """Hands out units by the policy of a config, and learns the lengths of the groups that ended.

    Homes are dealt when the first unit of a step is asked for, and dealt anew, of what still waits, when a worker joins
    or leaves: one that comes late is not left without work.
    """

    def __init__(self, config: StreamDispatch, rank: Rank | None = None):
        """``rank``: estimates of prompts, where the config names a ranker."""
        self.config, self.rank = config, rank
        self.history = History()
        self.recent: deque[int] = deque(maxlen=RECENT)
        self._ranked: dict[int, float] = {}  # problem -> the ranker's estimate
        self._problems: dict[Unit, tuple[int, ...]] = {}  # of the units that the policy knows
        self._workers: tuple[str, ...] = ()
        self._policy = self._new_policy()

    def admit(self, prompts: Sequence[Prompt]) -> None:
        """Have the ranker estimate prompts that it has not seen."""
        new = [prompt for prompt in prompts if prompt.problem.index not in self._ranked]
        if self.rank is not None and new:
            estimates = self.rank(new)
            self._ranked |= {prompt.problem.index: value for prompt, value in zip(new, estimates, strict=True)}

    def choose(self, waiting: Sequence[WorkUnit], worker: str, workers: Sequence[str]) -> WorkUnit | None:
        """Unit for ``worker``, one of the living ``workers``: of the oldest step in which the policy has one for it.
        None where all that waits is for others."""
        by_unit = {Unit(unit.step, unit.number, unit.problems[0]): unit for unit in waiting}
        if tuple(workers) != self._workers or not by_unit.keys() <= self._problems.keys():
            self._begin(by_unit, workers)
        numbers = range(len(workers))
        for step in sorted({unit.iteration for unit in by_unit}):
            of_step = {unit.number: unit for unit in sorted(by_unit) if unit.iteration == step}
            found = self._policy.next_unit(of_step, self._workers.index(worker), numbers)
            if found is not None:
                return by_unit[found]
        return None

    def group_ended(self, problem: int, tokens: Sequence[int]) -> None:
        """Take note of the responses of a group that was accepted. ``tokens``: the length of each."""
        for length in tokens:
            self.history.add(Unit(0, 0, problem), length)

    def unit_ended(self, longest: int) -> None:
        """Take note of a unit of which all groups are there. ``longest``: tokens of its longest response."""
        self.recent.append(longest)

    def state(self) -> dict[str, Any]:
        """Lengths that were seen, as plain JSON."""
        sums = [[problem, tokens, count] for problem, (tokens, count) in sorted(self.history.sums.items())]
        return {"history": sums, "recent": list(self.recent)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the lengths of a checkpoint, whatever the policy was there."""
        self.history.sums = {problem: (tokens, count) for problem, tokens, count in state["history"]}
        self.history.total = (sum(row[1] for row in state["history"]), sum(row[2] for row in state["history"]))
        self.recent = deque(state["recent"], maxlen=RECENT)
        self._problems = {}

    def estimate(self, unit: Unit) -> float:
        """The largest estimate of a unit's prompts, by the ranker or by the mean of their earlier responses."""
        problems = self._problems[unit]
        if self.rank is not None:
            return max(self._ranked[problem] for problem in problems)
        return max(self.history(unit._replace(prompt=problem)) for problem in problems)

    def _begin(self, waiting: Mapping[Unit, WorkUnit], workers: Sequence[str]) -> None:
        self._problems = {unit: work.problems for unit, work in waiting.items()}
        self._workers, self._policy = tuple(workers), self._new_policy()
        for step in sorted({unit.iteration for unit in waiting}):
            self._policy.begin([unit for unit in sorted(waiting) if unit.iteration == step], range(len(workers)))

    def _new_policy(self) -> Dispatcher:
        match self.config:
            case FifoDispatch():
                return Fifo()
            case RandomDispatch(seed=seed):
                return RandomHomes(seed)
            case StealDispatch(seed=seed):
                return Stealing(RandomHomes(seed))
            case RankedLongest():
                return LongestFirst(self.estimate)
            case RankedLength(objective=objective, share=share) | HistoryDispatch(objective=objective, share=share):
                split = LengthSplit(self.estimate, 1, ONE_UNIT, share, objective)
                split.recent = self.recent
                return split
            case OracleDispatch() | SiblingDispatch():
                raise ValueError(f"dispatch.type={self.config.type} is no policy of a run")
        assert_never(self.config)
