"""Which chunks' backward passes are split into gradients of inputs and of weights. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from stepstack.planning.pipeline.graph import PipelineGraph
from stepstack.planning.pipeline.memory import needs
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.schedule import Passes
from stepstack.planning.pipeline.timeline import costs_of

SplitChoice = Literal["auto", "never", "always"]


def split_graph(
    graph: PipelineGraph, profile: PipelineProfile, choice: SplitChoice = "auto", cap: float | None = None
) -> PipelineGraph:
    """The graph with the backward passes of its chunks split: none, all, or those that make the batch faster.

    ``auto`` tries, in microbatch order and under the cap, no chunk, and for each cost of splitting those chunks that
    cost no more; ties go to fewer chunks.
    """
    return min(_choices(graph, profile, choice), key=lambda one: _seconds(one, profile, cap))


def seconds_in_order(
    graph: PipelineGraph, profile: PipelineProfile, choice: SplitChoice = "auto", cap: float | None = None
) -> float:
    """Seconds of a batch in microbatch order with this choice; infinite where one microbatch needs more than the
    cap."""
    return min(_seconds(one, profile, cap) for one in _choices(graph, profile, choice))


def _choices(graph: PipelineGraph, profile: PipelineProfile, choice: SplitChoice) -> list[PipelineGraph]:
    match choice:
        case "never":
            chosen = [frozenset[int]()]
        case "always":
            chosen = [frozenset(range(len(graph.chunks)))]
        case "auto":
            costs = split_costs(graph, profile)
            chosen = [frozenset(c for c in costs if costs[c] <= most) for most in sorted(set(costs.values()))]
            chosen.insert(0, frozenset())
    return [replace(graph, split=one) for one in chosen]


def _seconds(graph: PipelineGraph, profile: PipelineProfile, cap: float | None) -> float:
    passes = Passes.of(graph, profile)
    if cap is not None and max(map(max, needs(passes.held, graph.ranks, graph.microbatches))) > cap:
        return math.inf
    return min(passes.schedule(passes.segments, cap, width).makespan for width in passes.widths)


def split_costs(graph: PipelineGraph, profile: PipelineProfile) -> Mapping[int, float]:
    """(I + W) / B of each chunk over all parts of the batch, to 3 digits; chunks that nothing goes through are left
    out."""
    whole: dict[int, float] = {}
    apart: dict[int, float] = {}
    for (chunk, _), cost in costs_of(graph, profile).items():
        whole[chunk] = whole.get(chunk, 0.0) + cost.backward
        apart[chunk] = apart.get(chunk, 0.0) + cost.input + cost.weight
    return {chunk: round(apart[chunk] / whole[chunk], 3) for chunk in whole if whole[chunk]}
