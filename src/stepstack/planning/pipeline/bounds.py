"""Lower bounds of the seconds that any plan of a batch takes. No torch."""

from __future__ import annotations

from heapq import heappop, heappush

from stepstack.planning.pipeline.graph import PipelineGraph
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.schedule import Passes


def lower_bound(graph: PipelineGraph, profile: PipelineProfile) -> float:
    """Seconds that no order of the passes can undercut, whatever it keeps in memory.

    For each rank the one-machine bound with preemption (Jackson's rule): a pass cannot begin before the longest chain
    of passes and transfers that leads to it, and the longest chain that follows it comes after it.
    """
    return bound_of(Passes.of(graph, profile))


def bound_of(passes: Passes) -> float:
    """The same for passes that are numbered already."""
    heads, tails = _heads_and_tails(passes)
    jobs: list[list[tuple[float, float, float]]] = [[] for _ in range(passes.graph.ranks)]
    for number, seconds in enumerate(passes.seconds):
        if number < 2 * len(passes.stages) or passes.split[number - 2 * len(passes.stages)]:
            jobs[passes.ranks[number]].append((heads[number], seconds, tails[number]))
    return max(map(_one_machine, jobs), default=0.0)


def _heads_and_tails(passes: Passes) -> tuple[list[float], list[float]]:
    """Seconds of the longest chain before each pass, and of the longest one after it."""
    count, seconds = len(passes.stages), passes.seconds
    heads, tails = [0.0] * (3 * count), [0.0] * (3 * count)
    left = list(passes.needs)
    order = [number for number in range(2 * count) if not left[number]]
    for number in order:  # grows while it is read
        end = heads[number] + seconds[number]
        for target, transfer in passes.after[number]:
            heads[target] = max(heads[target], end + transfer)
            left[target] -= 1
            if not left[target]:
                order.append(target)
        if number >= count:
            heads[number + count] = end
    for number in reversed(order):
        follows = [transfer + seconds[target] + tails[target] for target, transfer in passes.after[number]]
        if number >= count and passes.split[number - count]:
            follows.append(seconds[number + count])
        tails[number] = max(follows, default=0.0)
    return heads, tails


def _one_machine(jobs: list[tuple[float, float, float]]) -> float:
    """Least end of jobs (earliest begin, seconds, seconds that follow) on one machine that may interrupt them: the job
    with the most to follow goes first."""
    now, found = 0.0, 0.0
    queue: list[tuple[float, float]] = []  # (-tail, seconds left)
    waiting = sorted(jobs)
    at = 0
    while queue or at < len(waiting):
        if not queue:
            now = max(now, waiting[at][0])
        while at < len(waiting) and waiting[at][0] <= now:
            heappush(queue, (-waiting[at][2], waiting[at][1]))
            at += 1
        tail, left = heappop(queue)
        until = waiting[at][0] if at < len(waiting) else now + left
        if now + left <= until:
            now += left
            found = max(found, now - tail)
        else:
            heappush(queue, (tail, left - (until - now)))
            now = until
    return found
