"""Idle spans of a timeline, bytes over time, and the passes that its makespan consists of. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stepstack.planning.pipeline.graph import Action
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.timeline import Timeline, costs_of

Where = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Idle:
    """Seconds in which a rank waits: before its first pass, between two of them, or after the last one."""

    rank: int
    begin: float
    end: float
    where: Where


@dataclass(frozen=True, slots=True)
class CriticalPass:
    """A pass on the critical path. ``wait``: seconds between the end of the one before and its begin, which is the
    transfer between their ranks."""

    action: Action
    rank: int
    begin: float
    end: float
    wait: float


def idle(timeline: Timeline) -> list[Idle]:
    """Spans in which ranks wait, by rank and time."""
    found = []
    for rank, actions in enumerate(timeline.plan.order):
        at, where = 0.0, "start"
        for action in actions:
            begin, end = timeline.times[action]
            if begin > at:
                found.append(Idle(rank, at, begin, where))  # type: ignore[arg-type]
            at, where = end, "middle"
        if timeline.makespan > at:
            found.append(Idle(rank, at, timeline.makespan, "end"))
    return found


def bubbles(timeline: Timeline) -> dict[Where, float]:
    """Shares of all ranks' time in which they wait, by where; their sum is ``timeline.bubble``."""
    whole = timeline.makespan * len(timeline.plan.order)
    spans = idle(timeline)
    names: tuple[Where, ...] = ("start", "middle", "end")
    return {name: sum(one.end - one.begin for one in spans if one.where == name) / whole for name in names}


def memory(timeline: Timeline, profile: PipelineProfile) -> list[list[tuple[float, float]]]:
    """Bytes of each rank over time: (second, bytes from then on), ascending. The largest is ``timeline.peak_bytes``."""
    costs = costs_of(timeline.plan.graph, profile, timeline.plan.recompute)
    found = []
    for actions in timeline.plan.order:
        held, steps = 0.0, [(0.0, 0.0)]
        for action in actions:
            cost, (begin, end) = costs[action.chunk, action.part], timeline.times[action]
            if taken := {"F": cost.saved, "I": cost.kept}.get(action.kind, 0.0):
                held += taken
                steps.append((begin, held))
            if freed := {"B": cost.saved, "I": cost.saved, "W": cost.kept}.get(action.kind, 0.0):
                held -= freed
                steps.append((end, held))
        found.append(steps)
    return found


def critical_path(timeline: Timeline, profile: PipelineProfile) -> list[CriticalPass]:
    """Passes whose seconds and transfers add up to the makespan, in time: each began when the one before had ended, on
    its rank or on another one whose output it took in."""
    graph = timeline.plan.graph
    before = _before(timeline)
    action = max(timeline.times, key=lambda one: (timeline.times[one][1], one))
    found: list[CriticalPass] = []
    while True:
        begin, end = timeline.times[action]
        came = [(timeline.times[need][1] + profile.transfer(graph, need, action), need) for need in graph.needs(action)]
        came += [(timeline.times[other][1], other) for other in before.get(action, ())]
        cause = max(came)[1] if came else None
        ended = timeline.times[cause][1] if cause else 0.0
        found.append(CriticalPass(action, graph.rank_of(action), begin, end, begin - ended))
        if cause is None:
            return found[::-1]
        action = cause


def _before(timeline: Timeline) -> Mapping[Action, tuple[Action, ...]]:
    """The pass that the same rank carried out before each one."""
    return {later: (earlier,) for actions in timeline.plan.order for earlier, later in pairwise(actions)}
