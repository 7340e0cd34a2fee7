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
SAME_STEP = 1e-6  # decode steps that rounding of the clock may lose


@dataclass(frozen=True, slots=True)
class End:
    """Unit that ended: its tokens, and the version of the weights with which it was begun."""

    unit: Unit
    tokens: int
    version: int


@dataclass(slots=True)
class Instance:
    """One data-parallel unit of generation. ``rows``: (decode step at which it ends, number, unit, version begun with).
    ``step``: decode steps since the start, up to the time ``since``. ``changed``: event that its process waits for."""

    index: int
    changed: simpy.Event
    alive: bool = True
    version: int = 0
    step: float = 0.0
    since: float = 0.0
    rows: list[tuple[float, int, Unit, int]] = field(default_factory=list)


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
        self.instances = [Instance(index, env.event()) for index in range(instances)]
        for instance in self.instances:
            env.process(self._run(instance))

    @property
    def living(self) -> list[int]:
        return [instance.index for instance in self.instances if instance.alive]

    def open(self, iteration: int, units: Sequence[Unit]) -> None:
        """Let an iteration's units be taken."""
        self.dispatcher.begin(units, self.living)
        self.waiting[iteration] = {unit.number: unit for unit in units}
        self._hand_out(self.instances)

    def arrive(self, version: int) -> None:
        """Take new weights; instances get them as soon as nothing runs on them."""
        self.version = max(self.version, version)
        self._hand_out(self.instances)

    def kill(self, index: int) -> None:
        """End an instance; what ran on it waits again, and is done from its start. ValueError where it is the last."""
        instance = self.instances[index]
        if self.living == [index]:
            raise ValueError(f"instance {index} dies at {self.env.now:g} s and no other is left: nothing could go on")
        self._advance(instance)
        instance.alive = False
        for _, _, unit, _ in instance.rows:
            self.waiting.setdefault(unit.iteration, {})[unit.number] = unit
        self.redone += len(instance.rows)
        instance.rows = []
        # Waiting units stand in their order, wherever they came from.
        self.waiting = {key: dict(sorted(units.items())) for key, units in self.waiting.items()}
        self._hand_out(self.instances)

    def _run(self, instance: Instance) -> Process:
        """Wait until the next row of an instance ends or its rows change, for ever."""
        while True:
            instance.changed = self.env.event()
            wait = instance.changed
            if instance.rows:
                steps = max(0.0, instance.rows[0][0] - instance.step)
                wait |= self.env.timeout(steps * self.curve.seconds(len(instance.rows)))
            yield wait
            self._advance(instance)
            if self._finish(instance):
                self._hand_out([instance])

    def _advance(self, instance: Instance) -> None:
        """Bring an instance's decode steps up to the present."""
        seconds = self.env.now - instance.since
        if instance.rows and seconds > 0:
            rows = len(instance.rows)
            self.spans.append(Busy(instance.index, instance.rows[0][2].iteration, instance.since, self.env.now, rows))
            instance.step += seconds / self.curve.seconds(rows)
        instance.since = self.env.now

    def _hand_out(self, instances: Sequence[Instance]) -> None:
        """Give waiting units to the instances one at a time, always asking the one with the fewest rows."""
        asked = [(len(one.rows), one.index) for one in instances if one.alive and len(one.rows) < self.cap]
        heapq.heapify(asked)
        while asked:
            rows, index = heapq.heappop(asked)
            instance = self.instances[index]
            if not rows:
                instance.version = self.version
            unit = self._next(instance)
            if unit is None:
                continue
            self._advance(instance)
            self.begun += 1
            row = (instance.step + self.lengths(unit), self.begun, unit, instance.version)
            heapq.heappush(instance.rows, row)
            if not instance.changed.triggered:
                instance.changed.succeed()
            if rows + 1 < self.cap:
                heapq.heappush(asked, (rows + 1, index))

    def _next(self, instance: Instance) -> Unit | None:
        for iteration in sorted(self.waiting):
            if instance.version < iteration - self.lag:
                return None
            units = self.waiting[iteration]
            unit = self.dispatcher.next_unit(units, instance.index, self.living)
            if unit is not None:
                del units[unit.number]
                if not units:
                    del self.waiting[iteration]
                return unit
        return None

    def _finish(self, instance: Instance) -> bool:
        """Report the rows that have ended, and whether there were any."""
        ended = False
        while instance.rows and instance.rows[0][0] <= instance.step + SAME_STEP:
            _, _, unit, version = heapq.heappop(instance.rows)
            tokens = self.lengths(unit)
            self.dispatcher.ended(unit, tokens)
            self.on_end(End(unit, tokens, version))
            ended = True
        return ended
