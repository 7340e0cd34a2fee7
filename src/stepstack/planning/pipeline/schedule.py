"""Order of the passes of a batch by list scheduling with two queues a rank (PipeWeaver, arXiv 2504.14145). No torch.

A rank that is free takes the forward or the backward pass of the highest priority that can begin; where there are both,
the kind that it did not do last, which is 1F1B. Gradients of weights, where they are apart, fill the time in which
neither can begin (zero bubble). Passes are whole numbers here, F of stage s is s, B or I is S + s, W is 2S + s, where a
stage is a part through a chunk: a schedule is asked for many times over in a search.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush

from stepstack.planning.pipeline.graph import Action, PipelineGraph, PipelinePlan, PlanError
from stepstack.planning.pipeline.memory import Bank, Held
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.timeline import costs_of

Priorities = Mapping[tuple[int, str], float]  # (microbatch, module) -> larger goes first
Segments = Sequence[tuple[int, str]]  # the same as an order, the first goes first


@dataclass(frozen=True, slots=True)
class RankOrders:
    """Passes by number in the order of each rank, and the seconds until the last has ended."""

    order: tuple[tuple[int, ...], ...]
    makespan: float


@dataclass(frozen=True)
class Passes:
    """The passes of a graph as numbers, with their times from a profile."""

    graph: PipelineGraph
    stages: tuple[tuple[int, int], ...]  # (chunk, part)
    held: tuple[Held, ...]
    seconds: tuple[float, ...]  # of each pass
    ranks: tuple[int, ...]  # of each pass
    after: tuple[tuple[tuple[int, float], ...], ...]  # of each F, B and I: who waits for it, seconds of the transfer
    needs: tuple[int, ...]  # number of passes that each F, B and I waits for
    split: tuple[bool, ...]  # of each stage

    @classmethod
    def of(
        cls, graph: PipelineGraph, profile: PipelineProfile, recompute: Sequence[tuple[int, int, int]] = ()
    ) -> Passes:
        """Number the passes of a graph, some of whose layers are recomputed (see PipelinePlan). PlanError for a module
        that the profile does not have."""
        costs = costs_of(graph, profile, recompute)
        stages = tuple((chunk, n) for n, part in enumerate(graph.parts) for chunk in graph.chain[part.module])
        number = {stage: at for at, stage in enumerate(stages)}
        ranks = [graph.chunks[chunk].rank for chunk, _ in stages]
        split = tuple(chunk in graph.split for chunk, _ in stages)
        cost = [costs[stage] for stage in stages]
        held = tuple(
            Held(
                ranks[at],
                graph.parts[part].microbatch,
                math.ceil(cost[at].saved),
                math.ceil(cost[at].kept) if apart else 0,
            )
            for at, ((_, part), apart) in enumerate(zip(stages, split, strict=True))
        )
        after, needs = _edges(graph, profile, stages, number)
        backward = [one.input if apart else one.backward for one, apart in zip(cost, split, strict=True)]
        seconds = (*(one.forward for one in cost), *backward, *(one.weight for one in cost))
        return cls(graph, stages, held, seconds, tuple(ranks * 3), after, needs, split)

    @cached_property
    def segments(self) -> tuple[tuple[int, str], ...]:
        """The (microbatch, module) pairs that there are, in microbatch order."""
        names = [module.name for module in self.graph.modules]
        pairs = {(part.microbatch, part.module) for part in self.graph.parts}
        return tuple(sorted(pairs, key=lambda pair: (pair[0], names.index(pair[1]))))

    def ordered(self, priorities: Priorities | None) -> Segments:
        """The segments by priority, the largest first; microbatch order between equals and where there are none."""
        if priorities is None:
            return self.segments
        if missing := sorted(set(self.segments) - set(priorities)):
            raise PlanError(f"there is no priority for {missing[0]} (microbatch, module): give each of them one")
        return sorted(self.segments, key=lambda segment: -priorities[segment])

    def schedule(self, segments: Segments, cap: float | None = None) -> RankOrders:
        """Schedule by an order of the segments, under a cap of bytes a rank by the banker's rule, or without one."""
        return list_schedule(self, segments, None if cap is None else self.bank(segments, cap))

    def plan(self, schedule: RankOrders) -> PipelinePlan:
        """The plan that a schedule is."""
        count = len(self.stages)
        kinds = [("F", "I" if apart else "B", "W") for apart in self.split]
        return PipelinePlan(
            self.graph,
            tuple(
                tuple(Action(kinds[p % count][p // count], *self.stages[p % count]) for p in order)  # type: ignore[arg-type]
                for order in schedule.order
            ),
        )

    def keys(self, segments: Segments) -> list[int]:
        """Keys of the queues for each F, B and I, the smallest first; the key modulo twice the stages is the pass."""
        place = {segment: at for at, segment in enumerate(segments)}
        parts = self.graph.parts
        first = [place[part.microbatch, part.module] * len(parts) + n for n, part in enumerate(parts)]
        count = 2 * len(self.stages)
        return [first[part] * count + at for at, (_, part) in enumerate(self.stages * 2)]

    def bank(self, segments: Segments, cap: float) -> Bank:
        """Bank with the microbatches in the order in which their last segment stands."""
        last = {microbatch: at for at, (microbatch, _) in enumerate(segments)}
        place = [0] * self.graph.microbatches
        for at, microbatch in enumerate(sorted(last, key=last.__getitem__)):
            place[microbatch] = at
        return Bank.open(cap, self.held, place, self.graph.ranks)


def dual_queue(
    graph: PipelineGraph, profile: PipelineProfile, priorities: Priorities | None = None, cap: float | None = None
) -> PipelinePlan:
    """Plan of a batch by priorities of its (microbatch, module) pairs, larger first; None: microbatch order.

    ``cap``: bytes of activations that no rank may exceed, kept by the banker's rule. PlanError for a cap below what one
    microbatch needs, for a pair without a priority and for a module that the profile does not have.
    """
    passes = Passes.of(graph, profile)
    return passes.plan(passes.schedule(passes.ordered(priorities), cap))


def list_schedule(passes: Passes, segments: Segments, bank: Bank | None = None) -> RankOrders:
    """Schedule of passes by an order of their segments, of which a new bank admits those that take memory.

    PlanError where the bank lets nobody go on, which its own rule never does.
    """
    queues = Queues(passes, passes.keys(segments), bank)
    seconds, ranks, after = passes.seconds, passes.ranks, passes.after
    count = len(passes.stages)
    left, come = list(passes.needs), [0.0] * (3 * count)
    free = [0.0] * passes.graph.ranks
    order: list[list[int]] = [[] for _ in free]
    begun = 3 * count  # events from here on: a pass whose inputs have arrived
    events = [(0.0, begun + at) for at in range(2 * count) if not left[at]]
    heapify(events)
    tolerance = 1e-12 * sum(seconds)  # sums of the same times in another order are one time
    while events:
        now = events[0][0] + tolerance
        moved = set()
        while events and events[0][0] <= now:
            end, done = heappop(events)
            if done >= begun:
                queues.push(done - begun)
                moved.add(ranks[done - begun])
                continue
            moved.add(ranks[done])
            if done >= 2 * count:
                continue
            for target, transfer in after[done]:
                if come[target] < end + transfer:
                    come[target] = end + transfer
                left[target] -= 1
                if not left[target]:
                    if come[target] <= now:
                        queues.push(target)
                        moved.add(ranks[target])
                    else:
                        heappush(events, (come[target], begun + target))
            if done >= count and passes.split[done - count]:
                queues.weights[ranks[done]].append(done + count)
        for rank in moved:
            if free[rank] <= now and (chosen := queues.pop(rank)) is not None:
                begin = max(free[rank], come[chosen])
                free[rank] = end = begin + seconds[chosen]
                order[rank].append(chosen)
                heappush(events, (end, chosen))
    if any(left) or queues.waiting:
        raise PlanError(f"{sum(map(bool, left)) + queues.waiting} passes can never begin: no rank has bytes for one")
    return RankOrders(tuple(map(tuple, order)), max(free))


class Queues:
    """The passes of each rank that can begin: forward and backward by their keys, weights first in first out."""

    def __init__(self, passes: Passes, keys: Sequence[int], bank: Bank | None) -> None:
        ranks = range(passes.graph.ranks)
        self.count, self.keys, self.bank, self.held = len(passes.stages), keys, bank, passes.held
        self.ranks = passes.ranks
        self.forward: list[list[int]] = [[] for _ in ranks]
        self.backward: list[list[int]] = [[] for _ in ranks]
        self.weights: list[deque[int]] = [deque() for _ in ranks]
        self.turn = [False for _ in ranks]  # whether a backward pass is next

    @property
    def waiting(self) -> int:
        """Number of passes that no rank has begun."""
        return sum(map(len, (*self.forward, *self.backward, *self.weights)))

    def push(self, number: int) -> None:
        """Queue a pass that can begin."""
        heappush((self.forward if number < self.count else self.backward)[self.ranks[number]], self.keys[number])

    def pop(self, rank: int) -> int | None:
        """The pass that a rank does next; None: it waits."""
        if self.bank is not None:
            return self._admitted(rank, self.bank)
        forward, backward = self.forward[rank], self.backward[rank]
        if forward and not (backward and self.turn[rank]):
            self.turn[rank] = True
            return heappop(forward) % (2 * self.count)
        if backward:
            self.turn[rank] = False
            return heappop(backward) % (2 * self.count)
        return self.weights[rank].popleft() if self.weights[rank] else None

    def _admitted(self, rank: int, bank: Bank) -> int | None:
        """The same under a cap. A pass that fits once weights that wait are done lets one of these go before it."""
        count, weights = self.count, self.weights[rank]
        forward = next((k for k in sorted(self.forward[rank]) if bank.admits_forward(k % (2 * count))), None)
        backward = next((k for k in sorted(self.backward[rank]) if bank.admits_backward(k % (2 * count) - count)), None)
        if forward is not None and not (backward is not None and self.turn[rank]):
            queue, key, asked = self.forward[rank], forward, self.held[forward % (2 * count)].saved
        elif backward is not None:
            queue, key, asked = self.backward[rank], backward, self.held[backward % (2 * count) - count].kept
        else:
            queue, key, asked = [], -1, 0
        if weights and (key < 0 or not bank.fits(rank, asked)):
            done = weights.popleft()
            bank.weight(done - 2 * count)
            return done
        if key < 0:
            return None
        queue.remove(key)
        heapify(queue)
        number = key % (2 * count)
        self.turn[rank] = number < count
        if number < count:
            bank.forward(number)
        else:
            bank.backward(number - count)
        return number


Edges = tuple[tuple[tuple[tuple[int, float], ...], ...], tuple[int, ...]]


def _edges(
    graph: PipelineGraph,
    profile: PipelineProfile,
    stages: Sequence[tuple[int, int]],
    number: Mapping[tuple[int, int], int],
) -> Edges:
    """Who waits for each F and each B or I with the seconds of the transfer, and how many each of them waits for."""
    count = len(stages)
    after: list[list[tuple[int, float]]] = [[] for _ in range(2 * count)]
    needs = [0] * (2 * count)
    known: dict[tuple[str, bool, float], float] = {}
    for at, (chunk, n) in enumerate(stages):
        part = graph.parts[n]
        chain = graph.chain[part.module]
        if chunk != chain[-1]:
            targets, inner = [at + 1], True
        else:
            readers = [
                (graph.chain[name][0], other)
                for name in graph.readers[part.module]
                for other in graph.parts_of(part.microbatch, name)
            ]
            targets, inner = [number[reader] for reader in readers], False
        for target in targets:
            transfer = 0.0
            if graph.chunks[stages[target][0]].rank != graph.chunks[chunk].rank:
                key = part.module, inner, part.size
                if key not in known:
                    known[key] = profile.transfer(graph, Action("F", chunk, n), Action("F", *stages[target]))
                transfer = known[key]
            for source, sink in ((at, target), (count + target, count + at)):
                after[source].append((sink, transfer))
                needs[sink] += 1
        if not targets:
            after[at].append((count + at, 0.0))
            needs[count + at] += 1
    return tuple(map(tuple, after)), tuple(needs)
