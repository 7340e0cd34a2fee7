"""Layers that are recomputed in the backward pass, so that a rank's activations stay within a cap. No torch.

The order of the passes is given, so that what each rank holds before each pass follows from the numbers of recomputed
layers alone: of all numbers that keep the cap, those with the fewest seconds are wanted. Layers of a chunk are equal,
so that of a chunk and part only their number matters. What a pass needs while it runs, such as the one layer that is
just being recomputed, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepstack.planning.pipeline.graph import PipelineGraph, PipelinePlan, PlanError
from stepstack.planning.pipeline.memory import needs
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.schedule import Passes
from stepstack.planning.pipeline.search import SearchOptions, best_schedule
from stepstack.planning.pipeline.timeline import costs_of, timeline

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of every chunk's layers with which orders are made

POWERS = (1.0, 2.0, 8.0)


class Candidate(NamedTuple):
    """A chunk and part of a rank: its layers, the bytes and the seconds of recomputing one of them, and the moments
    from its forward pass to its backward pass at which it holds bytes, ``end`` exclusive."""

    chunk: int
    part: int
    layers: int
    bytes: float
    seconds: float
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class RankMemory:
    """The layers that a rank may recompute, and its bytes above the cap at each moment where it recomputes
    nothing."""

    candidates: tuple[Candidate, ...]
    excess: NDArray[np.float64]

    def left(self, layers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bytes above the cap at each moment with these numbers of recomputed layers."""
        steps = np.zeros(len(self.excess) + 1)
        freed = layers * np.array([one.bytes for one in self.candidates])
        np.add.at(steps, [one.begin for one in self.candidates], freed)
        np.add.at(steps, [one.end for one in self.candidates], -freed)
        return self.excess - np.cumsum(steps)[:-1]

    def seconds(self, layers: NDArray[np.int64]) -> float:
        """Seconds that recomputing takes."""
        return float(layers @ np.array([one.seconds for one in self.candidates]))


Choice = Callable[[RankMemory], NDArray[np.int64] | None]


def greedy(memory: RankMemory) -> NDArray[np.int64] | None:
    """Numbers of recomputed layers: a quarter of a chunk's at a time, those with the fewest seconds for each byte above
    the cap that they take away, where moments count by a power of how far they are above it; then those are dropped
    that are not needed. The best of some powers. None: the cap is out of reach."""
    tried = [_greedy(memory, power) for power in POWERS]
    return min((layers for layers in tried if layers is not None), key=memory.seconds, default=None)


def _greedy(memory: RankMemory, power: float) -> NDArray[np.int64] | None:
    candidates, left = memory.candidates, memory.excess.copy()
    begins, ends = np.array([one.begin for one in candidates], int), np.array([one.end for one in candidates], int)
    sizes, seconds = np.array([one.bytes for one in candidates]), np.array([one.seconds for one in candidates])
    layers, most = np.zeros(len(candidates), np.int64), np.array([one.layers for one in candidates])
    steps = -(-most // 4)  # layers at a time: what is too much is dropped at the end
    tolerance = 1e-9 * max(1.0, float(np.abs(left).max(initial=0.0)))
    while (highest := left.max(initial=0.0)) > tolerance:
        above = np.concatenate([[0.0], np.cumsum(np.maximum(left / highest, 0.0) ** power)])
        gain = np.where(layers < most, sizes * (above[ends] - above[begins]), 0.0) if candidates else np.zeros(1)
        if gain.max() <= 0:
            return None
        best = int(np.argmin(np.where(gain > 0, seconds / np.maximum(gain, 1e-300), np.inf)))
        more = min(steps[best], most[best] - layers[best])
        layers[best] += more
        left[begins[best] : ends[best]] -= more * sizes[best]
    for at in np.argsort(-seconds, kind="stable"):
        span = left[begins[at] : ends[at]]
        while layers[at] and span.max() + sizes[at] <= tolerance:
            layers[at] -= 1
            span += sizes[at]
    return layers


def exact(memory: RankMemory, gap: float = 1e-6, limit_seconds: float = 60.0) -> NDArray[np.int64] | None:
    """Numbers of recomputed layers with the fewest seconds, to a relative ``gap``, by an integer program in HiGHS.

    None: the cap is out of reach. PlanError where HiGHS ends without an answer.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import
    from scipy.sparse import lil_array

    count = len(memory.candidates)
    if not count or memory.excess.max(initial=0.0) <= 0:
        return np.zeros(count, np.int64) if memory.excess.max(initial=0.0) <= 0 else None
    moments = np.flatnonzero(memory.excess > 0)
    freed = lil_array((len(moments), count))
    for column, one in enumerate(memory.candidates):
        for row in range(*np.searchsorted(moments, [one.begin, one.end])):
            freed[row, column] = one.bytes
    found = milp(
        [one.seconds for one in memory.candidates],
        integrality=np.ones(count),
        bounds=Bounds(0, [one.layers for one in memory.candidates]),
        constraints=LinearConstraint(freed.tocsr(), memory.excess[moments], np.inf),
        options={"mip_rel_gap": gap, "time_limit": limit_seconds},
    )
    if found.status == 2:
        return None
    if found.x is None:
        raise PlanError(f"HiGHS found no layers to recompute in {limit_seconds:g} s: {found.message}")
    return np.rint(found.x).astype(np.int64)


def rank_memory(plan: PipelinePlan, profile: PipelineProfile, rank: int, cap: float) -> RankMemory:
    """The layers that a rank of a plan may recompute, and its bytes above the cap at each of its passes."""
    graph, stages = plan.graph, {(chunk, part) for _, chunk, part in plan.order[rank]}
    costs = costs_of(graph, profile, only=stages)
    again = costs_of(graph, profile, [(*stage, 1) for stage in stages], only=stages)
    held, excess = 0.0, []
    begins: dict[tuple[int, int], int] = {}
    candidates = []
    for moment, (kind, chunk, part) in enumerate(plan.order[rank]):
        cost = costs[chunk, part]
        held += {"F": cost.saved, "I": cost.kept}.get(kind, 0.0)
        excess.append(held - cap)
        held -= {"B": cost.saved, "I": cost.saved, "W": cost.kept}.get(kind, 0.0)
        if kind == "F":
            begins[chunk, part] = moment
        elif kind != "W":
            one = graph.chunks[chunk]
            freed, seconds = cost.saved - again[chunk, part].saved, again[chunk, part].backward - cost.backward
            if freed > 0:
                begin = begins[chunk, part]
                candidates.append(Candidate(chunk, part, one.end - one.begin, freed, seconds, begin, moment + 1))
    return RankMemory(tuple(candidates), np.array(excess))


def recomputed(
    plan: PipelinePlan, profile: PipelineProfile, cap: float, choose: Choice = greedy
) -> PipelinePlan | None:
    """The plan with as many layers recomputed as its order needs to keep the cap; None: all of them are not enough."""
    chosen: list[tuple[int, int, int]] = []
    for rank in range(len(plan.order)):
        memory = rank_memory(plan, profile, rank, cap)
        layers = choose(memory)
        if layers is None:
            return None
        chosen += [(one.chunk, one.part, int(n)) for one, n in zip(memory.candidates, layers, strict=True) if n]
    return replace(plan, recompute=tuple(sorted(chosen)))


def search_with_recompute(
    graph: PipelineGraph, profile: PipelineProfile, options: SearchOptions, cap: float
) -> PipelinePlan:
    """The fastest plan under a cap of those that recompute what their order needs. Orders are searched with none, a
    quarter, half, three quarters and all of each chunk's layers recomputed, with its times and its bytes.

    PlanError where one microbatch needs more than the cap with all layers recomputed.
    """
    best: tuple[float, PipelinePlan] | None = None
    for level in LEVELS:
        layers = [int(level * (chunk.end - chunk.begin)) for chunk in graph.chunks]
        again = [
            (chunk, number, layers[chunk])
            for number, part in enumerate(graph.parts)
            for chunk in graph.chain[part.module]
            if layers[chunk]
        ]
        passes = Passes.of(graph, profile, again)
        fits = max(map(max, needs(passes.held, graph.ranks, graph.microbatches))) <= cap
        if not fits and (level < LEVELS[-1] or best is not None):
            continue
        plan = recomputed(passes.plan(best_schedule(passes, options, cap)), profile, cap)
        assert plan is not None  # the order keeps the cap with ``again``
        makespan = timeline(plan, profile).makespan
        if best is None or makespan < best[0]:
            best = makespan, plan
    assert best is not None
    return best[1]
