"""Which instance does what next: the policies that the simulator and the trainer share. No torch.

Work is handed out on a pull: a worker has room, and the dispatcher names the waiting unit that it gets. A policy
depends on its arguments and on what it was told of units that ended, never on a clock: the same calls give the same
answers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol, assert_never

import numpy as np
from pydantic import Field, NonNegativeInt

from stepstack.config import Strict
from stepstack.planning.rollout import skew
from stepstack.planning.rollout.curves import DecodeCurve
from stepstack.planning.rollout.skew import Objective

RECENT = 4096  # ended responses that count as the recent distribution of lengths
Share = Annotated[float, Field(gt=0, lt=1)]


class Unit(NamedTuple):  # a tuple, because policies look it up in maps all the time
    """Work that one worker does whole, one sample of a prompt or several. ``number``: its number in the iteration.
    ``prompt``: number of the prompt, the same in all iterations with it. ``sample``: number of the first sample."""

    iteration: int
    number: int
    prompt: int
    sample: int = 0


Estimate = Callable[[Unit], float]  # tokens, or anything that ascends with them
Waiting = Mapping[int, Unit]  # units of one iteration by their numbers, in their order


class Dispatcher(Protocol):
    """Policy of one generation service."""

    def begin(self, units: Sequence[Unit], workers: Sequence[int]) -> None:
        """Take note of an iteration's units before the first of them is handed out."""
        ...

    def next_unit(self, waiting: Waiting, worker: int, workers: Sequence[int]) -> Unit | None:
        """Unit of ``waiting`` that ``worker`` gets, None where all of them are for others of the living ``workers``.

        Where several iterations are open, the caller asks for the oldest first; where several workers have room, for
        the one that has least to do, since one that is filled up first leaves nothing for the others.
        """
        ...

    def ended(self, unit: Unit, tokens: int) -> None:
        """Take note of a unit's length; each unit ends once, however often it was begun."""
        ...


class Fifo:
    """One queue: whoever has room gets the first unit that waits."""

    def begin(self, units: Sequence[Unit], workers: Sequence[int]) -> None:
        """Keep nothing: the queue is the order of the units."""

    def next_unit(self, waiting: Waiting, worker: int, workers: Sequence[int]) -> Unit | None:
        return next(iter(waiting.values()), None)

    def ended(self, unit: Unit, tokens: int) -> None:
        """Learn nothing: lengths do not matter here."""


class LongestFirst:
    """One queue, sorted: whoever has room gets the unit of the longest estimate (LPT)."""

    def __init__(self, estimate: Estimate):
        self.estimate = estimate

    def begin(self, units: Sequence[Unit], workers: Sequence[int]) -> None:
        """Keep nothing: estimates are asked for when a unit is handed out."""

    def next_unit(self, waiting: Waiting, worker: int, workers: Sequence[int]) -> Unit | None:
        return max(waiting.values(), key=lambda unit: (self.estimate(unit), -unit.number), default=None)

    def ended(self, unit: Unit, tokens: int) -> None:
        """Learn nothing: the estimates are given."""


class SiblingFirst:
    """The first sample of a prompt that ends is the estimate of its siblings, which have like lengths.

    One queue: first one sample of every prompt, then the others of prompts of which none has ended yet, since those are
    the long ones, then those whose estimate is known, longest first.
    """

    def __init__(self) -> None:
        self.first: dict[tuple[int, int], Unit] = {}
        self.known: dict[tuple[int, int], int] = {}

    def begin(self, units: Sequence[Unit], workers: Sequence[int]) -> None:
        for unit in units:
            self.first.setdefault((unit.iteration, unit.prompt), unit)
        oldest = min((unit.iteration for unit in units), default=0) - 1
        for group in [group for group in self.first if group[0] < oldest]:
            del self.first[group]
            self.known.pop(group, None)

    def next_unit(self, waiting: Waiting, worker: int, workers: Sequence[int]) -> Unit | None:
        return min(waiting.values(), key=self._place, default=None)

    def ended(self, unit: Unit, tokens: int) -> None:
        self.known.setdefault((unit.iteration, unit.prompt), tokens)

    def _place(self, unit: Unit) -> tuple[int, int, int]:
        group = (unit.iteration, unit.prompt)
        if self.first.get(group) == unit:
            return (0, 0, unit.number)
        known = self.known.get(group)
        return (1, 0, unit.number) if known is None else (2, -known, unit.number)


class Homes:
    """Units with a home each, where they wait in an order of their own.

    A unit whose home has died is anyone's, and so is one that was handed out and waits again.
    """

    def __init__(self) -> None:
        self.homes: dict[Unit, int] = {}
        self.place: dict[Unit, int] = {}
        self.queues: dict[tuple[int, int], list[Unit]] = {}  # (iteration, worker) -> units, the next one last
        self.taken: set[Unit] = set()  # units that have left their queue
        self.left: Counter[int] = Counter()  # iteration -> units that have not ended

    def begin(self, units: Sequence[Unit], workers: Sequence[int]) -> None:
        self.left.update(unit.iteration for unit in units)
        for number, (unit, home) in reversed(list(enumerate(self.assign(units, workers)))):
            self.homes[unit], self.place[unit] = home, number
            self.queues.setdefault((unit.iteration, home), []).append(unit)

    def assign(self, units: Sequence[Unit], workers: Sequence[int]) -> list[tuple[Unit, int]]:
        """Units with their homes, in the order in which they are taken."""
        return [(unit, workers[number % len(workers)]) for number, unit in enumerate(units)]

    def next_unit(self, waiting: Waiting, worker: int, workers: Sequence[int]) -> Unit | None:
        if not waiting:
            return None
        queue = self.queues.get((next(iter(waiting.values())).iteration, worker), [])
        while queue and queue[-1].number not in waiting:
            self.taken.add(queue.pop())
        if queue:
            return queue[-1]
        lost = (u for u in waiting.values() if u in self.taken or self.homes[u] not in workers)
        return min(lost, key=self.place.__getitem__, default=None)

    def ended(self, unit: Unit, tokens: int) -> None:
        del self.homes[unit], self.place[unit]
        self.left[unit.iteration] -= 1
        if not self.left[unit.iteration]:
            del self.left[unit.iteration]
            self.queues = {key: queue for key, queue in self.queues.items() if key[0] in self.left}
            self.taken = {other for other in self.taken if other.iteration in self.left}


class RandomHomes(Homes):
    """Homes drawn at random with equal numbers, units in random order (Random-FIFO)."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def assign(self, units: Sequence[Unit], workers: Sequence[int]) -> list[tuple[Unit, int]]:
        iteration = units[0].iteration if units else 0
        order = np.random.default_rng((self.seed, iteration)).permutation(len(units)).tolist()
        return super().assign([units[at] for at in order], workers)


class LengthSplit(Homes):
    """Algorithm 2: the prompts with the longest estimates wait at instances of their own; inside an instance the
    longest goes first. Prompts of a part are dealt to its instances in turn, from long to short.

    P90 and P50 are those of the last ``RECENT`` responses, before any has ended of the estimates.
    """

    def __init__(
        self,
        estimate: Estimate,
        cap: int,
        curve: DecodeCurve,
        share: float = skew.LONG_SHARE,
        objective: Objective = "max",
    ):
        super().__init__()
        self.estimate, self.cap, self.curve = estimate, cap, curve
        self.share, self.objective = share, objective
        self.recent: deque[int] = deque(maxlen=RECENT)

    def assign(self, units: Sequence[Unit], workers: Sequence[int]) -> list[tuple[Unit, int]]:
        estimates = [self.estimate(unit) for unit in units]
        ordered = [units[at] for at in sorted(range(len(units)), key=lambda at: (-estimates[at], at))]
        if len(workers) < 2:
            return super().assign(ordered, workers)
        long_length, regular_length = np.percentile(self.recent or estimates, [90, 50]).tolist()
        found = skew.split(
            len(units), len(workers), long_length, regular_length, self.cap, self.curve, self.share, self.objective
        )
        longs, regulars = ordered[: found.long_prompts], ordered[found.long_prompts :]
        return [
            *super().assign(longs, workers[: found.long_instances]),
            *super().assign(regulars, workers[found.long_instances :]),
        ]

    def ended(self, unit: Unit, tokens: int) -> None:
        super().ended(unit, tokens)
        self.recent.append(tokens)


class History:
    """Estimate of a prompt's length: the mean of its earlier responses, and of all prompts' where it has none."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[int, int]] = {}  # prompt -> (tokens, responses)
        self.total = (0, 0)

    def __call__(self, unit: Unit) -> float:
        tokens, count = self.sums.get(unit.prompt, self.total)
        return tokens / count if count else 0.0

    def add(self, unit: Unit, tokens: int) -> None:
        """Take note of a response."""
        before, count = self.sums.get(unit.prompt, (0, 0))
        self.sums[unit.prompt] = (before + tokens, count + 1)
        self.total = (self.total[0] + tokens, self.total[1] + 1)


class HistorySplit(LengthSplit):
    """Algorithm 2 with a prompt's earlier lengths as its estimate."""

    def __init__(self, cap: int, curve: DecodeCurve, share: float = skew.LONG_SHARE, objective: Objective = "max"):
        self.history = History()
        super().__init__(self.history, cap, curve, share, objective)

    def ended(self, unit: Unit, tokens: int) -> None:
        super().ended(unit, tokens)
        self.history.add(unit, tokens)


class Stealing:
    """A policy with homes, whose idle instances take from the fullest queue what its owner would take last."""

    def __init__(self, homes: Homes):
        self.policy = homes

    def begin(self, units: Sequence[Unit], workers: Sequence[int]) -> None:
        self.policy.begin(units, workers)

    def next_unit(self, waiting: Waiting, worker: int, workers: Sequence[int]) -> Unit | None:
        unit = self.policy.next_unit(waiting, worker, workers)
        if unit is not None or not waiting:
            return unit
        queues = Counter(self.policy.homes[other] for other in waiting.values())
        fullest = min(queues, key=lambda owner: (-queues[owner], owner))
        theirs = (other for other in waiting.values() if self.policy.homes[other] == fullest)
        return max(theirs, key=self.policy.place.__getitem__)

    def ended(self, unit: Unit, tokens: int) -> None:
        self.policy.ended(unit, tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class FifoDispatch(Strict):
    """One queue in the order of the prompts."""

    type: Literal["fifo"] = "fifo"
    """Choice of the policy: one queue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomDispatch(Strict):
    """Equal numbers for every instance, at random: the paper's baseline."""

    type: Literal["random"] = "random"
    """Choice of the policy: homes at random."""
    seed: NonNegativeInt = 0
    """Seed of the draw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitOptions(Strict):
    """How algorithm 2 splits prompts."""

    objective: Objective = "max"
    """Value of a split that is minimised: paper adds the seconds of its two parts, max takes the slower part."""
    share: Share = skew.LONG_SHARE
    """Share of the prompts that count as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthDispatch(SplitOptions):
    """Algorithm 2 by the estimates of a ranker."""

    type: Literal["length"] = "length"
    """Choice of the policy: algorithm 2, by a ranker's estimates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleDispatch(SplitOptions):
    """Algorithm 2 by the true lengths, which only a simulation knows."""

    type: Literal["oracle"] = "oracle"
    """Choice of the policy: algorithm 2, by true lengths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryDispatch(SplitOptions):
    """Algorithm 2 by a prompt's earlier lengths."""

    type: Literal["history"] = "history"
    """Choice of the policy: algorithm 2, by earlier lengths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongestDispatch(Strict):
    """One queue, the longest estimate of the ranker first."""

    type: Literal["longest"] = "longest"
    """Choice of the policy: one queue, the longest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SiblingDispatch(Strict):
    """One queue, ordered by the length of a prompt's first sample that ended."""

    type: Literal["sibling"] = "sibling"
    """Choice of the policy: one queue, by a prompt's first sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StealDispatch(Strict):
    """Random homes, whose idle instances take from the fullest queue."""

    type: Literal["steal"] = "steal"
    """Choice of the policy: homes at random, from which idle instances take."""
    seed: NonNegativeInt = 0
    """Seed of the draw of homes."""


DispatchConfig = Annotated[
    FifoDispatch
    | RandomDispatch
    | LengthDispatch
    | OracleDispatch
    | HistoryDispatch
    | LongestDispatch
    | SiblingDispatch
    | StealDispatch,
    Field(discriminator="type"),
]


def build(config: DispatchConfig, estimate: Estimate, truth: Estimate, cap: int, curve: DecodeCurve) -> Dispatcher:
    """Dispatcher of a config. ``estimate`` is the ranker, ``truth`` the length that only a simulation knows."""
    match config:
        case FifoDispatch():
            return Fifo()
        case RandomDispatch(seed=seed):
            return RandomHomes(seed)
        case LengthDispatch(objective=objective, share=share):
            return LengthSplit(estimate, cap, curve, share, objective)
        case OracleDispatch(objective=objective, share=share):
            return LengthSplit(truth, cap, curve, share, objective)
        case HistoryDispatch(objective=objective, share=share):
            return HistorySplit(cap, curve, share, objective)
        case LongestDispatch():
            return LongestFirst(estimate)
        case SiblingDispatch():
            return SiblingFirst()
        case StealDispatch(seed=seed):
            return Stealing(RandomHomes(seed))
    assert_never(config)
