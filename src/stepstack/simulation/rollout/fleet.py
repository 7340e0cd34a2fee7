"""Generation instances on a simulated clock: continuous batching, versions of weights, and instances that die.

Between two ends of rows every active row advances at the same rate, so an instance sleeps until its next row ends or
something changes; no token is simulated by itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from stepstack.planning.rollout.curves import DecodeCurve
from stepstack.planning.rollout.dispatch import Dispatcher, Unit

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class Busy:
    """Time in which something worked, in seconds. ``lane``: an instance's number, or ``TRAINER`` or ``LINK``.
    ``rows``: rows that decoded together, and 0 elsewhere."""

    lane: int
    iteration: int
    start: float
    end: float
    rows: int = 0


TRAINER, LINK = -1, -2


@dataclass(frozen=True, slots=True)
class End:
    """Unit that ended: its tokens, and the version of the weights with which it was begun."""

    unit: Unit
    tokens: int
    version: int


@dataclass(slots=True)
class Instance:
    """One data-parallel unit of generation. ``rows``: (decode step at which it ends, number, unit, version begun with).
    ``step``: decode steps since the start."""

    index: int
    alive: bool = True
    version: int = 0
    step: float = 0.0
    rows: list[tuple[float, int, Unit, int]] = field(default_factory=list)
    wake: simpy.Event | None = None


class Fleet:
    """All instances, and the units that wait for them.

    ``lag``: updates by which the weights that begin a unit may be behind its iteration; an instance takes new weights
    when nothing runs on it. ``lengths``: tokens of every unit. ``on_end`` is called when a unit ends.
    """

    def __init__(
        self,
        env: simpy.Environment,
        instances: int,
        cap: int,
        curve: DecodeCurve,
        dispatcher: Dispatcher,
        lengths: Callable[[Unit], int],
        on_end: Callable[[End], None],
        lag: int = 0,
    ):
        self.env, self.cap, self.curve, self.dispatcher = env, cap, curve, dispatcher
        self.lengths, self.on_end, self.lag = lengths, on_end, lag
        self.version = 0  # newest weights that arrived
        self.waiting: dict[int, dict[int, Unit]] = {}
        self.spans: list[Busy] = []
        self.begun = self.redone = 0
        self.instances = [Instance(index) for index in range(instances)]
        for instance in self.instances:
            env.process(self._run(instance))

    @property
    def living(self) -> list[int]:
        return [instance.index for instance in self.instances if instance.alive]

    def open(self, iteration: int, units: Sequence[Unit]) -> None:
        """Let an iteration's units be taken."""
        self.dispatcher.begin(units, self.living)
        self.waiting[iteration] = {unit.number: unit for unit in units}
        self.wake()

    def arrive(self, version: int) -> None:
        """Take new weights; instances get them as soon as nothing runs on them."""
        self.version = max(self.version, version)
        self.wake()

    def kill(self, index: int) -> None:
        """End an instance; what ran on it waits again, and is done from its start. ValueError where it is the last."""
        instance = self.instances[index]
        if self.living == [index]:
            raise ValueError(f"instance {index} dies at {self.env.now:g} s and no other is left: nothing could go on")
        instance.alive = False
        for _, _, unit, _ in instance.rows:
            self.waiting.setdefault(unit.iteration, {})[unit.number] = unit
        self.redone += len(instance.rows)
        # Waiting units stand in their order, wherever they came from.
        self.waiting = {key: dict(sorted(units.items())) for key, units in self.waiting.items()}
        self.wake()

    def wake(self) -> None:
        """Let every instance look for work."""
        for instance in self.instances:
            if instance.wake is not None and not instance.wake.triggered:
                instance.wake.succeed()

    def _run(self, instance: Instance) -> Process:
        while instance.alive:
            self._fill(instance)
            instance.wake = self.env.event()
            if not instance.rows:
                yield instance.wake
                continue
            began, rows = self.env.now, len(instance.rows)
            seconds, last = self.curve.seconds(rows), instance.rows[0][0]
            ends = self.env.timeout((last - instance.step) * seconds)
            yield ends | instance.wake
            self.spans.append(Busy(instance.index, instance.rows[0][2].iteration, began, self.env.now, rows))
            if not instance.alive:
                instance.rows = []
                return
            instance.step = last if ends.processed else instance.step + (self.env.now - began) / seconds
            self._finish(instance)

    def _fill(self, instance: Instance) -> None:
        if not instance.rows:
            instance.version = self.version
        while len(instance.rows) < self.cap and (unit := self._next(instance)) is not None:
            self.begun += 1
            row = (instance.step + self.lengths(unit), self.begun, unit, instance.version)
            heapq.heappush(instance.rows, row)

    def _next(self, instance: Instance) -> Unit | None:
        for iteration in sorted(self.waiting):
            if instance.version < iteration - self.lag:
                return None
            units = self.waiting[iteration]
            unit = self.dispatcher.next_unit(units.values(), instance.index, self.living)
            if unit is not None:
                del units[unit.number]
                if not units:
                    del self.waiting[iteration]
                return unit
        return None

    def _finish(self, instance: Instance) -> None:
        while instance.rows and instance.rows[0][0] <= instance.step + 1e-6:
            _, _, unit, version = heapq.heappop(instance.rows)
            tokens = self.lengths(unit)
            self.dispatcher.ended(unit, tokens)
            self.on_end(End(unit, tokens, version))
