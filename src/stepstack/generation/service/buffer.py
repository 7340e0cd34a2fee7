"""Work of training steps, shared out to workers, each group accepted exactly once: a pure state machine. No torch.

A group is ``waiting``, ``leased``, ``ended`` or ``trained``, and has the key (step, problem). Groups are leased in
units, the prompts that decode together; a lease is known by its attempt, and what an older attempt brings is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

P = TypeVar("P")  # a group as it came from a worker


class WorkError(RuntimeError):
    """Work that cannot go on: the message names the step, the problem and what to do."""


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Prompts of a step that decode together, sampled by the policy of ``version``. ``problems``: their indices."""

    step: int
    number: int
    version: int
    problems: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """A unit as one worker has it. ``wanted``: its problems whose groups are still missing."""

    unit: WorkUnit
    attempt: int
    wanted: tuple[int, ...]


@dataclass
class _Held(Generic[P]):
    unit: WorkUnit
    groups: dict[int, P] = field(default_factory=dict)  # problem -> what came
    attempt: int = 0
    worker: str | None = None
    seen: float = 0.0  # when the worker last brought something

    @property
    def complete(self) -> bool:
        return len(self.groups) == len(self.unit.problems)

    def lease(self) -> Lease:
        return Lease(self.unit, self.attempt, tuple(p for p in self.unit.problems if p not in self.groups))


Choose = Callable[[Sequence[WorkUnit], str], WorkUnit | None]  # None: what waits is for other workers


class WorkBuffer(Generic[P]):
    """``depth``: steps that may be held at a time. ``choose`` names the waiting unit that a worker gets. Nothing is
    dropped for its age: what bounds the buffer is that no further step is admitted. ``redispatched`` counts units that
    went to another worker, ``late`` groups refused."""

    def __init__(self, depth: int, choose: Choose):
        self.depth, self.choose = depth, choose
        self.redispatched = self.late = 0
        self._held: dict[tuple[int, int], _Held[P]] = {}
        self._next_step = 0  # the first step that was never admitted

    # -- the trainer ---------------------------------------------------------------------------------------------

    def admit(self, units: Sequence[WorkUnit]) -> None:
        """Take the units of one step, of which each problem is in one. Admitting a step again, as after a resume, adds
        only what is missing. WorkError for a step that was trained, and beyond ``depth`` steps."""
        [step] = {unit.step for unit in units}
        if step < self.first_step:
            raise WorkError(f"step {step} was trained already: its groups are not sampled again")
        if len(self.steps | {step}) > self.depth:
            raise WorkError(f"steps {sorted(self.steps)} are held, no more than {self.depth} may be: train one first")
        problems = [problem for unit in units for problem in unit.problems]
        if len(set(problems)) < len(problems):
            raise WorkError(f"step {step} has a problem twice, whose groups would be one: draw different problems")
        for unit in units:
            held = self._held.setdefault((step, unit.number), _Held(unit))
            if held.unit != unit:
                raise WorkError(f"step {step}, unit {unit.number} was admitted as {held.unit}, not as {unit}")
        self._next_step = max(self._next_step, step + 1)

    def unit(self, step: int, number: int) -> list[P] | None:
        """The groups of a unit, in the order of its problems, once all are there."""
        held = self._held[step, number]
        return [held.groups[problem] for problem in held.unit.problems] if held.complete else None

    def ended(self, step: int) -> dict[int, P]:
        """The groups of a step that have ended, by problem."""
        units = (held for key, held in self._held.items() if key[0] == step)
        return {problem: group for held in units for problem, group in held.groups.items()}

    def trained(self, step: int) -> None:
        """Forget a step whose groups were trained. WorkError where a group of it is missing."""
        of_step = [key for key in self._held if key[0] == step]
        if missing := [self._held[key].lease().wanted for key in of_step if not self._held[key].complete]:
            raise WorkError(f"step {step}: the groups of problems {missing[0]} have not ended")
        for key in of_step:
            del self._held[key]

    # -- the workers ---------------------------------------------------------------------------------------------

    def lease(self, worker: str, now: float) -> Lease | None:
        """A waiting unit for a worker that has none; None where nothing waits that it may have."""
        if self.leased_by(worker) is not None:
            raise WorkError(f"worker {worker} asked for work while it has some")
        waiting = [held.unit for held in self._held.values() if held.worker is None and not held.complete]
        unit = self.choose(waiting, worker) if waiting else None
        if unit is None:
            return None
        held = self._held[unit.step, unit.number]
        held.worker, held.seen = worker, now
        held.attempt += 1
        self.redispatched += held.attempt > 1
        return held.lease()

    def end(self, step: int, number: int, attempt: int, problem: int, group: P, now: float) -> bool:
        """Whether a group was accepted: it is wanted, and comes from the unit's newest attempt."""
        held = self._held.get((step, number))
        if held is None or attempt != held.attempt or held.worker is None or problem not in held.lease().wanted:
            self.late += 1
            return False
        held.groups[problem], held.seen = group, now
        if held.complete:
            held.worker = None
        return True

    def release(self, worker: str) -> Lease | None:
        """Let a worker's unfinished groups wait for another; the lease that ended so."""
        lease = self.leased_by(worker)
        if lease is not None:
            self._held[lease.unit.step, lease.unit.number].worker = None
        return lease

    def leased_by(self, worker: str) -> Lease | None:
        return next((held.lease() for held in self._held.values() if held.worker == worker), None)

    def silent(self, now: float, timeout: float) -> list[str]:
        """Workers whose unit had no group for longer than ``timeout`` seconds."""
        return [held.worker for held in self._held.values() if held.worker is not None and now - held.seen > timeout]

    # -- what is there -------------------------------------------------------------------------------------------

    @property
    def steps(self) -> set[int]:
        return {step for step, _ in self._held}

    @property
    def first_step(self) -> int:
        """The earliest step that is not trained."""
        return min(self.steps, default=self._next_step)

    def waiting_groups(self) -> int:
        return sum(len(held.lease().wanted) for held in self._held.values() if held.worker is None)

    def ended_groups(self) -> int:
        return sum(len(held.groups) for held in self._held.values())

    def versions_wanted(self) -> set[int]:
        """Versions of the policy by which unfinished units are sampled."""
        return {held.unit.version for held in self._held.values() if not held.complete}

    # -- in a checkpoint -----------------------------------------------------------------------------------------

    def state(self) -> Iterator[tuple[WorkUnit, dict[int, P]]]:
        """Units that are held, with the groups that have ended."""
        return ((held.unit, dict(held.groups)) for _, held in sorted(self._held.items()))

    def restore(self, state: Sequence[tuple[WorkUnit, dict[int, P]]], next_step: int) -> None:
        """Take over the units of a checkpoint; leases are not among them, so that what had not ended waits."""
        self._held = {(unit.step, unit.number): _Held(unit, dict(groups)) for unit, groups in state}
        self._next_step = next_step

    @property
    def next_step(self) -> int:
        return self._next_step
