"""Six ways to overlap generation, training and the transfer of weights, simulated on one clock (StreamRL, figure 5)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

import simpy

from stepstack.planning.rollout.curves import DecodeCurve
from stepstack.planning.rollout.dispatch import Dispatcher, Unit
from stepstack.planning.rollout.job import PipelineName
from stepstack.simulation.rollout.fleet import LINK, TRAINER, Busy, End, Fleet, Process

Lengths = Sequence[Sequence[int]]  # tokens of each row of each iteration
# (iteration, rows that have ended, rows that were trained) -> rows to train on now
Ready = Callable[[int, list[int], set[int]], list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Machines and workload of a simulation.

    ``token_seconds``: seconds of training on a token. ``samples``: rows of a prompt, which are handed over together.
    ``saturate``: tokens at which a streaming trainer starts a micro-step. ``mini_batches``: parts of an iteration that
    the pipeline "mini-batch" hands over. ``faults``: (seconds, instance) of instances that die.
    """

    instances: int
    cap: int
    curve: DecodeCurve
    token_seconds: float
    weights_seconds: float
    samples: int = 1
    saturate: int = 1
    mini_batches: int = 4
    faults: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a simulation: ``seconds`` until the last iteration was trained, what worked when, rows trained in their
    order as (iteration, row), the largest number of updates by which a row's weights were behind, and the rows that
    were begun a second time."""

    pipeline: PipelineName
    seconds: float
    iterations: int
    rows: int
    instances: int
    spans: tuple[Busy, ...]
    trained: tuple[tuple[int, int], ...]
    lag: int
    redone: int

    @property
    def per_iteration(self) -> float:
        """Mean seconds of an iteration."""
        return self.seconds / self.iterations

    @property
    def throughput(self) -> float:
        """Rows trained in a second."""
        return self.rows / self.seconds

    @property
    def trainer_idle(self) -> float:
        """Share of the time in which the trainer had nothing to do."""
        return 1 - sum(span.end - span.start for span in self.spans if span.lane == TRAINER) / self.seconds

    @property
    def generator_idle(self) -> float:
        """Share of the instances' time in which nothing ran on them."""
        busy = sum(span.end - span.start for span in self.spans if span.lane >= 0)
        return 1 - busy / (self.seconds * self.instances)

    @property
    def exposed(self) -> float:
        """Seconds in which weights travelled and nothing else went on."""
        work = sorted((span.start, span.end) for span in self.spans if span.lane != LINK)
        return sum(_uncovered(span.start, span.end, work) for span in self.spans if span.lane == LINK)


class Training:
    """Simulated trainer with its iterations' ended groups."""

    def __init__(self, env: simpy.Environment, setup: Setup, lengths: Lengths):
        self.env, self.setup, self.lengths = env, setup, lengths
        self.ended: dict[int, list[int]] = defaultdict(list)  # iteration -> rows whose groups are complete, in order
        self.parts: dict[tuple[int, int], list[int]] = defaultdict(list)  # rows of groups that are not yet complete
        self.news = env.event()
        self.spans: list[Busy] = []
        self.trained: list[tuple[int, int]] = []
        self.lag = 0

    def take(self, end: End) -> None:
        """Take note of a row that ended; its group becomes trainable with its last row."""
        unit = end.unit
        self.lag = max(self.lag, unit.iteration - end.version)
        group = self.parts[unit.iteration, unit.prompt]
        group.append(unit.number)
        if len(group) == self.setup.samples:
            self.ended[unit.iteration] += sorted(self.parts.pop((unit.iteration, unit.prompt)))
            self.news.succeed()
            self.news = self.env.event()

    def all_ended(self, iteration: int) -> Process:
        """Wait until every row of an iteration has ended."""
        while len(self.ended[iteration]) < len(self.lengths[iteration]):
            yield self.news

    def run(self, iteration: int, ready: Ready) -> Process:
        """Train on an iteration, on what ``ready(iteration, ended, done)`` allows, until all rows are done."""
        done: set[int] = set()
        while len(done) < len(self.lengths[iteration]):
            rows = ready(iteration, self.ended[iteration], done)
            if not rows:
                yield self.news
                continue
            began = self.env.now
            tokens = sum(self.lengths[iteration][row] for row in rows)
            yield self.env.timeout(tokens * self.setup.token_seconds)
            self.spans.append(Busy(TRAINER, iteration, began, self.env.now))
            done |= set(rows)
            self.trained += [(iteration, row) for row in rows]

    def whole(self, iteration: int, ended: list[int], done: set[int]) -> list[int]:
        """All rows, once all have ended."""
        return ended[:] if len(ended) == len(self.lengths[iteration]) else []

    def mini_batch(self, iteration: int, ended: list[int], done: set[int]) -> list[int]:
        """Rows of the first mini-batch that has ended whole; its rows are fixed before they are generated."""
        total, there = len(self.lengths[iteration]), set(ended)
        groups = total // self.setup.samples
        size = math.ceil(groups / self.setup.mini_batches) * self.setup.samples
        parts = (range(start, min(start + size, total)) for start in range(0, total, size))
        return next((list(part) for part in parts if part[0] not in done and there.issuperset(part)), [])

    def stream(self, iteration: int, ended: list[int], done: set[int]) -> list[int]:
        """All rows that have ended, once they fill the trainer or are the last ones."""
        rows = [row for row in ended if row not in done]
        full = sum(self.lengths[iteration][row] for row in rows) >= self.setup.saturate
        return rows if full or len(ended) == len(self.lengths[iteration]) else []


@dataclass(frozen=True, slots=True)
class Machinery:
    """Parts of a running simulation that its pipeline moves."""

    env: simpy.Environment
    fleet: Fleet
    training: Training
    setup: Setup
    units: Sequence[Sequence[Unit]]

    def start(self, pipeline: PipelineName) -> Process:
        """Process of a pipeline, which ends when the last iteration was trained."""
        match pipeline:
            case "colocated" | "batch":
                return self.one_after_another(self.training.whole)
            case "mini-batch":
                return self.one_after_another(self.training.mini_batch)
            case "stream":
                return self.one_after_another(self.training.stream)
            case "one-step":
                return self.one_step()
            case "async":
                return self.fully_async()
        assert_never(pipeline)

    def one_after_another(self, ready: Ready) -> Process:
        """On-policy: an iteration is generated, trained as far as ``ready`` allows meanwhile, and its weights sent."""
        for iteration in range(len(self.units)):
            self.fleet.open(iteration, self.units[iteration])
            yield from self.training.run(iteration, ready)
            if iteration + 1 < len(self.units):
                yield from self.send(iteration + 1)

    def one_step(self) -> Process:
        """Training runs one iteration behind; both wait for each other and for the weights after every iteration."""
        self.fleet.open(0, self.units[0])
        yield from self.training.all_ended(0)
        for iteration in range(len(self.units)):
            following = iteration + 1
            if following < len(self.units):
                self.fleet.open(following, self.units[following])
            yield from self.training.run(iteration, self.training.whole)
            if following < len(self.units):
                yield from self.training.all_ended(following)
            if following + 1 < len(self.units):
                yield from self.send(following)

    def fully_async(self) -> Process:
        """Training streams iteration after iteration while weights travel. An iteration may be generated as soon as
        weights one update behind it have arrived."""
        link: simpy.Process | None = None
        for iteration in range(min(2, len(self.units))):
            self.fleet.open(iteration, self.units[iteration])
        for iteration in range(len(self.units)):
            yield from self.training.run(iteration, self.training.stream)
            if iteration + 2 < len(self.units):
                link = self.env.process(self._send_after(link, iteration + 1))

    def send(self, version: int) -> Process:
        """Transfer weights to the generators."""
        began = self.env.now
        yield self.env.timeout(self.setup.weights_seconds)
        self.training.spans.append(Busy(LINK, version - 1, began, self.env.now))
        self.fleet.arrive(version)

    def _send_after(self, earlier: simpy.Process | None, version: int) -> Process:
        """Transfer when the link is free, and open the iteration that waited for these weights."""
        if earlier is not None and earlier.is_alive:
            yield earlier
        yield from self.send(version)
        self.fleet.open(version + 1, self.units[version + 1])


def units_of(lengths: Lengths, samples: int) -> list[list[Unit]]:
    """Units of every iteration, one a row; iterations visit the same prompts."""
    return [
        [Unit(iteration, row, row // samples, row % samples) for row in range(len(rows))]
        for iteration, rows in enumerate(lengths)
    ]


def simulate(pipeline: PipelineName, setup: Setup, lengths: Lengths, dispatcher: Dispatcher) -> Outcome:
    """Run every iteration of ``lengths`` through a pipeline. ValueError where an instance dies that is not there or is
    the last one."""
    env = simpy.Environment()
    training = Training(env, setup, lengths)
    fleet = Fleet(
        env,
        setup.instances,
        setup.cap,
        setup.curve,
        dispatcher,
        lambda unit: lengths[unit.iteration][unit.number],
        training.take,
        lag=1 if pipeline in ("one-step", "async") else 0,
    )
    for seconds, index in setup.faults:
        if index >= setup.instances:
            raise ValueError(f"instance {index} cannot die: there are 0 to {setup.instances - 1}")
        env.process(_die(env, fleet, seconds, index))
    units = units_of(lengths, setup.samples)
    env.run(env.process(Machinery(env, fleet, training, setup, units).start(pipeline)))
    return Outcome(
        pipeline=pipeline,
        seconds=env.now,
        iterations=len(lengths),
        rows=sum(map(len, lengths)),
        instances=setup.instances,
        spans=(*fleet.spans, *training.spans),
        trained=tuple(training.trained),
        lag=training.lag,
        redone=fleet.redone,
    )


def _die(env: simpy.Environment, fleet: Fleet, seconds: float, index: int) -> Process:
    yield env.timeout(seconds)
    fleet.kill(index)


def _uncovered(start: float, end: float, work: Sequence[tuple[float, float]]) -> float:
    """Seconds from ``start`` to ``end`` in which none of the sorted intervals of ``work`` lies."""
    free, at = 0.0, start
    for began, ended in work:
        if began >= end:
            break
        free += max(0.0, min(began, end) - at)
        at = max(at, ended)
    return free + max(0.0, end - at)
