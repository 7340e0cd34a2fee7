"""Search for the order in which the parts of a batch are preferred. No torch.

An order is a sequence of (microbatch, module) pairs, which all their passes share as a priority: PipeWeaver's cut of
symmetric orders. They go one by one, as published, or in blocks, in which all take the first chunk of a rank before the
next one. Without W apart this is what interleaved 1F1B gains from rounds of as many microbatches as ranks. The value of
an order, with a width of its blocks, is the seconds of the dual queue's schedule. The budget counts these evaluations,
not seconds, so that a plan depends on its arguments alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from stepstack.config import Strict
from stepstack.planning.pipeline.bounds import bound_of
from stepstack.planning.pipeline.graph import PipelineGraph, PipelinePlan
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.schedule import Passes, RankOrders, Segments


@dataclass(frozen=True, kw_only=True, slots=True)
class MicrobatchOrder(Strict):
    """Priorities in the order of the microbatches, without a search."""

    type: Literal["order"] = "order"
    """Choice of the priorities: microbatch order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoarseOrder(Strict):
    """All encoders before what reads them, in the order of the microbatches (as Optimus does)."""

    type: Literal["coarse"] = "coarse"
    """Choice of the priorities: module by module."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSearch(Strict):
    """Small changes to the best order so far, kept where they are no worse."""

    type: Literal["local"] = "local"
    """Choice of the priorities: local search."""
    evaluations: PositiveInt = 32
    """Orders that are tried."""
    seed: NonNegativeInt = 0
    """Seed of the changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeSearch(Strict):
    """Monte Carlo tree search over prefixes of the order, as published."""

    type: Literal["mcts"] = "mcts"
    """Choice of the priorities: Monte Carlo tree search."""
    evaluations: PositiveInt = 32
    """Orders that are tried."""
    seed: NonNegativeInt = 0
    """Seed of the rollouts."""
    rollouts: PositiveInt = 10
    """Random completions of each new prefix."""
    alpha: PositiveFloat = 8.0
    """Exponent of a prefix's best score, which is the lower bound over the seconds."""
    beta: NonNegativeFloat = 0.1
    """Weight of prefixes that were seldom tried."""


SearchOptions = Annotated[MicrobatchOrder | CoarseOrder | LocalSearch | TreeSearch, Field(discriminator="type")]


def search(
    graph: PipelineGraph, profile: PipelineProfile, options: SearchOptions, cap: float | None = None
) -> PipelinePlan:
    """Plan by the best order found. ``cap``: bytes of activations a rank, None: any.

    Deterministic in its arguments. PlanError where one microbatch needs more than the cap.
    """
    passes = Passes.of(graph, profile)
    return passes.plan(best_schedule(passes, options, cap))


def best_schedule(passes: Passes, options: SearchOptions, cap: float | None = None) -> RankOrders:
    """The same for passes that are numbered already, as a schedule."""
    match options:
        case MicrobatchOrder():
            return passes.schedule(passes.segments, cap)
        case CoarseOrder():
            return passes.schedule(coarse_order(passes), cap)
        case LocalSearch(evaluations=evaluations, seed=seed):
            trials = Trials(passes, cap, evaluations)
            _local(trials, Random(seed))
        case TreeSearch(evaluations=evaluations, seed=seed):
            trials = Trials(passes, cap, evaluations)
            _tree(trials, options, Random(seed))
    assert trials.schedule is not None
    return trials.schedule


def coarse_order(passes: Passes) -> Segments:
    """All segments of the first module, then those of the next one, each in microbatch order."""
    names = [module.name for module in passes.graph.modules]
    return sorted(passes.segments, key=lambda segment: (names.index(segment[1]), segment[0]))


@dataclass(slots=True)
class Trials:
    """Evaluations of orders within a budget, and the best of them."""

    passes: Passes
    cap: float | None
    budget: int
    order: Segments = ()
    width: int = 1
    schedule: RankOrders | None = None

    def seconds(self, order: Segments, width: int) -> float:
        """Seconds of an order's schedule in blocks of ``width``. Call it only within the budget."""
        self.budget -= 1
        tried = self.passes.schedule(order, self.cap, width)
        if self.schedule is None or tried.makespan < self.schedule.makespan:
            self.order, self.width, self.schedule = tuple(order), width, tried
        return tried.makespan

    def start(self) -> None:
        """Try the orders that need no search: microbatches in turn, module by module, longest microbatch first."""
        work: dict[int, float] = {}
        for number, seconds in enumerate(self.passes.seconds):
            microbatch = self.passes.held[number % len(self.passes.held)].microbatch
            work[microbatch] = work.get(microbatch, 0.0) + seconds
        longest = sorted(self.passes.segments, key=lambda segment: -work[segment[0]])
        for width, order in product(self.passes.widths, (self.passes.segments, coarse_order(self.passes))):
            if self.budget:
                self.seconds(order, width)
        if self.budget:
            self.seconds(longest, self.width)


def _local(trials: Trials, random: Random) -> None:
    """Move one segment, swap two, move a microbatch, or take another width, from the last order that was no worse than
    the best."""
    trials.start()
    current, width, many = list(trials.order), trials.width, len(trials.order)
    while trials.budget and many > 1:
        order, wide, kind = list(current), width, random.randrange(7)
        at, to = random.sample(range(many), 2)
        if kind < 2:
            order.insert(to, order.pop(at))
        elif kind < 4:
            order[at], order[to] = order[to], order[at]
        elif kind == 4:
            wide = random.choice(trials.passes.widths)
        else:
            whole = [segment for segment in order if segment[0] == order[at][0]]
            rest = [segment for segment in order if segment[0] != order[at][0]]
            order = [*rest[:to], *whole, *rest[to:]]
        assert trials.schedule is not None
        best = trials.schedule.makespan
        if trials.seconds(order, wide) <= best:
            current, width = order, wide


@dataclass(slots=True)
class Prefix:
    """A prefix of the order: its last segment, what may follow it and has not been tried, and its best score."""

    segments: tuple[tuple[int, str], ...]
    untried: list[tuple[int, str]]
    children: list[Prefix] = field(default_factory=list)
    visits: int = 0
    score: float = 0.0


def _tree(trials: Trials, options: TreeSearch, random: Random) -> None:
    """Select by s^alpha + beta * sqrt(ln N_parent / N), expand one child, complete it at random, report the best."""
    trials.start()
    bound = bound_of(trials.passes)
    root = Prefix((), distinct(trials.passes, ()))
    while trials.budget:
        path = [root]
        while not path[-1].untried and path[-1].children:
            above = path[-1]
            path.append(max(above.children, key=lambda node: _ucb(node, above.visits, options)))
        leaf = path[-1]
        if leaf.untried:
            prefix = (*leaf.segments, leaf.untried.pop(random.randrange(len(leaf.untried))))
            leaf.children.append(Prefix(prefix, distinct(trials.passes, prefix)))
            path.append(leaf.children[-1])
        score = 0.0
        for _ in range(min(options.rollouts, trials.budget)):
            rest = [segment for segment in trials.passes.segments if segment not in path[-1].segments]
            random.shuffle(rest)
            score = max(score, bound / trials.seconds([*path[-1].segments, *rest], trials.width))
        for node in path:
            node.visits += 1
            node.score = max(node.score, score)


def _ucb(node: Prefix, visits: int, options: TreeSearch) -> float:
    return float(node.score**options.alpha + options.beta * math.sqrt(math.log(visits) / node.visits))


def distinct(passes: Passes, prefix: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Segments that may follow a prefix; of microbatches with the same parts, none of which has been placed, those of
    the first, since exchanging such microbatches changes nothing."""
    placed = set(prefix)
    begun = {microbatch for microbatch, _ in prefix}
    sizes: dict[int, list[tuple[str, float]]] = {}
    for part in passes.graph.parts:
        sizes.setdefault(part.microbatch, []).append((part.module, part.size))
    kinds: dict[object, tuple[int, str]] = {}
    for segment in passes.segments:
        if segment not in placed:
            microbatch, name = segment
            kinds.setdefault(segment if microbatch in begun else (tuple(sizes[microbatch]), name), segment)
    return list(kinds.values())
