"""When each pass of a plan begins and ends, and how many bytes each rank keeps. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from stepstack.planning.pipeline.graph import Action, Chunk, PipelineGraph, PipelineModule, PipelinePlan, SubMicrobatch
from stepstack.planning.pipeline.profile import PassCost, PipelineProfile

PASSES = "passes.json"  # in a run's folder: the passes of a batch, measured and simulated


@dataclass(frozen=True)
class Timeline:
    """Seconds (begin, end) of each pass from the start of the batch, and by rank the most bytes kept at a time and the
    seconds of computing."""

    plan: PipelinePlan
    times: Mapping[Action, tuple[float, float]]
    peak_bytes: tuple[float, ...]
    busy: tuple[float, ...]

    @property
    def makespan(self) -> float:
        """Seconds until the last pass has ended."""
        return max(end for _, end in self.times.values())

    @property
    def bubble(self) -> float:
        """Share of all ranks' time in which they wait."""
        return 1.0 - sum(self.busy) / (self.makespan * len(self.busy))

    def record(self) -> dict[str, Any]:
        """All of it as JSON values, which ``recorded`` reads."""
        graph = self.plan.graph
        return {
            "modules": [asdict(one) for one in graph.modules],
            "chunks": [asdict(one) for one in graph.chunks],
            "parts": [asdict(one) for one in graph.parts],
            "split": sorted(graph.split),
            "recompute": self.plan.recompute,
            "passes": [[[*action, *self.times[action]] for action in actions] for actions in self.plan.order],
            "peak_bytes": list(self.peak_bytes),
        }


def measured(plan: PipelinePlan, times: Mapping[Action, tuple[float, float]]) -> Timeline:
    """Timeline of passes that were carried out, whose bytes nobody counted."""
    busy = [sum(times[action][1] - times[action][0] for action in actions) for actions in plan.order]
    return Timeline(plan, times, (0.0,) * len(busy), tuple(busy))


def recorded(values: Mapping[str, Any]) -> Timeline:
    """The timeline of which ``record`` made these values."""
    graph = PipelineGraph(
        tuple(PipelineModule(**{**one, "reads": tuple(one["reads"])}) for one in values["modules"]),
        tuple(Chunk(**one) for one in values["chunks"]),
        tuple(SubMicrobatch(**{**one, "items": tuple(one["items"])}) for one in values["parts"]),
        frozenset(values["split"]),
    )
    rows = [[(Action(*row[:3]), (row[3], row[4])) for row in rank] for rank in values["passes"]]
    order = tuple(tuple(action for action, _ in row) for row in rows)
    plan = PipelinePlan(graph, order, tuple((chunk, part, layers) for chunk, part, layers in values["recompute"]))
    found = measured(plan, {action: times for row in rows for action, times in row})
    return replace(found, peak_bytes=tuple(values["peak_bytes"]))


def costs_of(
    graph: PipelineGraph,
    profile: PipelineProfile,
    recompute: Sequence[tuple[int, int, int]] = (),
    only: Collection[tuple[int, int]] | None = None,
) -> dict[tuple[int, int], PassCost]:
    """Costs of each part through each chunk of its module, by (chunk, part). ``recompute``: see PipelinePlan.
    ``only``: the (chunk, part) pairs that are asked for, None: all."""
    again = {(chunk, part): layers for chunk, part, layers in recompute}
    known: dict[tuple[int, float, int], PassCost] = {}
    found: dict[tuple[int, int], PassCost] = {}
    every = ((chunk, number) for number, part in enumerate(graph.parts) for chunk in graph.chain[part.module])
    for chunk, number in every if only is None else only:
        key = chunk, graph.parts[number].size, again.get((chunk, number), 0)
        if key not in known:
            known[key] = profile.cost(graph.chunks[chunk], *key[1:])
        found[chunk, number] = known[key]
    return found


def timeline(plan: PipelinePlan, profile: PipelineProfile) -> Timeline:
    """Each rank carries out its passes in the plan's order, each as soon as what it needs has come. PlanError for
    orders that wait for each other."""
    graph, costs = plan.graph, costs_of(plan.graph, profile, plan.recompute)
    free, busy = [0.0] * len(plan.order), [0.0] * len(plan.order)
    held, peak = [0.0] * len(plan.order), [0.0] * len(plan.order)
    times: dict[Action, tuple[float, float]] = {}
    for action in plan.in_time():
        rank, cost = graph.rank_of(action), costs[action.chunk, action.part]
        come = [times[need][1] + profile.transfer(graph, need, action) for need in graph.needs(action)]
        begin, seconds = max([free[rank], *come]), cost.seconds(action.kind)
        times[action] = begin, begin + seconds
        free[rank], busy[rank] = begin + seconds, busy[rank] + seconds
        held[rank] += {"F": cost.saved, "I": cost.kept}.get(action.kind, 0.0)
        peak[rank] = max(peak[rank], held[rank])
        held[rank] -= {"B": cost.saved, "I": cost.saved, "W": cost.kept}.get(action.kind, 0.0)
    return Timeline(plan, times, tuple(peak), tuple(busy))
