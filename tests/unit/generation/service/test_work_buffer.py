"""Every group is accepted once, whatever workers do in whatever order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepstack.generation.service.buffer import Lease, WorkBuffer, WorkError, WorkUnit

PROBLEMS = {0: ((1, 2), (3,), (4, 5, 6)), 1: ((2, 7), (8, 9)), 2: ((1,), (2,), (3, 4)), 3: ((5, 6),)}
STEPS = len(PROBLEMS)


def units(step: int, version: int = 0) -> list[WorkUnit]:
    return [WorkUnit(step, number, version, problems) for number, problems in enumerate(PROBLEMS[step])]


def in_order(waiting: Sequence[WorkUnit], worker: str) -> WorkUnit:
    return waiting[0]


class Trial:
    """A trainer of staleness 1 and three workers, each of whose deeds is one event; old leases may speak up again."""

    def __init__(self) -> None:
        self.buffer: WorkBuffer[tuple] = WorkBuffer(depth=2, choose=in_order)
        self.leases: dict[str, Lease] = {}
        self.old: list[Lease] = []
        self.accepted: dict[tuple[int, int], int] = {}
        self.step, self.now = 0, 0.0
        for step in (0, 1):
            self.buffer.admit(units(step))

    def event(self, number: int) -> None:
        kind, worker, choice = number % 6, f"w{number // 6 % 3}", number // 18
        self.now += 1.0
        if kind in (0, 1):
            self.work(worker, choice)
        elif kind == 2:
            self.give_up(worker)
        elif kind == 3 and self.old:
            self.bring(self.old[choice % len(self.old)], choice, old=True)
        elif kind == 4:
            self.train()
        elif kind == 5:
            self.restart()

    def work(self, worker: str, choice: int) -> None:
        if worker not in self.leases:
            lease = self.buffer.lease(worker, self.now)
            if lease is not None:
                self.leases[worker] = lease
        else:
            self.bring(self.leases[worker], choice)
            if self.buffer.leased_by(worker) is None:
                self.old.append(self.leases.pop(worker))

    def bring(self, lease: Lease, choice: int, old: bool = False) -> None:
        unit, problem = lease.unit, lease.unit.problems[choice % len(lease.unit.problems)]
        key = (unit.step, problem)
        if self.buffer.end(unit.step, unit.number, lease.attempt, problem, (key, lease.attempt), self.now):
            assert not old
            assert key not in self.accepted
            assert problem in lease.wanted
            self.accepted[key] = lease.attempt

    def give_up(self, worker: str) -> None:
        if worker in self.leases:
            assert self.buffer.release(worker) is not None
            self.old.append(self.leases.pop(worker))

    def train(self) -> None:
        """The groups of the step in their order, if all are there; then the next step is admitted."""
        if self.step == STEPS:
            return
        parts = [self.buffer.unit(self.step, number) for number in range(len(PROBLEMS[self.step]))]
        if any(part is None for part in parts):
            with pytest.raises(WorkError):
                self.buffer.trained(self.step)
            return
        keys = [key for part in parts for key, _ in part or ()]
        assert keys == [(self.step, problem) for problems in PROBLEMS[self.step] for problem in problems]
        self.buffer.trained(self.step)
        self.step += 1
        if self.step + 1 < STEPS:
            self.buffer.admit(units(self.step + 1))

    def restart(self) -> None:
        """The trainer is killed and goes on from a checkpoint of this moment; its workers' leases are of before."""
        state, next_step = list(self.buffer.state()), self.buffer.next_step
        self.buffer = WorkBuffer(depth=2, choose=in_order)
        self.buffer.restore(state, next_step)
        for step in range(self.step, min(self.step + 2, STEPS)):
            self.buffer.admit(units(step))
        self.old, self.leases = [], {}  # fenced off by the name of the trainer's process

    def finish(self) -> None:
        """With one worker that lives, all that is left is done, once."""
        for worker in list(self.leases):
            self.give_up(worker)
        while self.step < STEPS:
            lease = self.buffer.lease("last", self.now)
            if lease is not None:
                for problem in lease.wanted:
                    key = (lease.unit.step, problem)
                    assert self.buffer.end(*key[:1], lease.unit.number, lease.attempt, problem, (key, 0), self.now)
                    assert self.accepted.setdefault(key, -1) == -1
            self.train()
        assert self.accepted.keys() == {(s, p) for s, parts in PROBLEMS.items() for part in parts for p in part}
        assert self.buffer.steps == set()


@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 18 * 6 - 1), max_size=40))
def test_ten_thousand_orders_of_events(numbers):
    trial = Trial()
    for number in numbers:
        trial.event(number)
    trial.finish()


def test_no_step_is_admitted_beyond_what_may_be_held():
    buffer: WorkBuffer[str] = WorkBuffer(depth=2, choose=in_order)
    for step in (0, 1):
        buffer.admit(units(step))
    with pytest.raises(WorkError, match="no more than 2 may be"):
        buffer.admit(units(2))
    assert buffer.waiting_groups() == 10


def test_what_was_trained_is_not_sampled_again():
    buffer: WorkBuffer[str] = WorkBuffer(depth=1, choose=in_order)
    buffer.admit(units(3))
    lease = buffer.lease("a", 0.0)
    for problem in lease.wanted:
        assert buffer.end(3, 0, lease.attempt, problem, "group", 1.0)
    buffer.trained(3)
    with pytest.raises(WorkError, match="step 3 was trained already"):
        buffer.admit(units(3))


def test_what_waits_for_other_workers_is_not_leased():
    buffer: WorkBuffer[str] = WorkBuffer(depth=1, choose=lambda waiting, worker: waiting[0] if worker == "b" else None)
    buffer.admit(units(0))
    assert buffer.lease("a", 0.0) is None
    assert buffer.lease("b", 0.0).unit == units(0)[0]


def test_a_problem_twice_in_a_step_is_refused():
    with pytest.raises(WorkError, match="a problem twice"):
        WorkBuffer(depth=1, choose=in_order).admit([WorkUnit(0, 0, 0, (1, 2)), WorkUnit(0, 1, 0, (2,))])


def test_a_silent_worker_loses_its_unit_and_what_it_brings_later_is_counted():
    buffer: WorkBuffer[str] = WorkBuffer(depth=1, choose=in_order)
    buffer.admit(units(0))
    first = buffer.lease("slow", 0.0)
    assert buffer.end(0, 0, first.attempt, 1, "from slow", 5.0)
    assert buffer.silent(14.0, 10.0) == []
    assert buffer.silent(15.5, 10.0) == ["slow"]
    assert buffer.release("slow").wanted == (2,)
    second = buffer.lease("quick", 16.0)
    assert (second.unit, second.attempt, second.wanted) == (first.unit, 2, (2,))
    assert not buffer.end(0, 0, first.attempt, 2, "from slow, late", 17.0)
    assert buffer.end(0, 0, second.attempt, 2, "from quick", 18.0)
    assert buffer.unit(0, 0) == ["from slow", "from quick"]
    assert (buffer.redispatched, buffer.late) == (1, 1)
