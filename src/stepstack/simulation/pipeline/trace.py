"""A timeline as a Chrome trace, which chrome://tracing and ui.perfetto.dev open. No torch."""

from __future__ import annotations

from typing import Any

from stepstack.planning.pipeline.graph import Action, PipelineGraph
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.timeline import Timeline
from stepstack.simulation.pipeline import analysis

NAMES = {"F": "forward", "B": "backward", "I": "input gradients", "W": "weight gradients"}


def chrome_trace(timeline: Timeline, profile: PipelineProfile) -> dict[str, Any]:
    """Trace with a thread for each rank, a counter for its bytes, and an arrow for each message between ranks.

    Times are microseconds from the start of the batch, as the format asks.
    """
    graph = timeline.plan.graph
    events: list[dict[str, Any]] = [_named("process_name", 0, f"pipeline of {profile.model}")]
    for rank, actions in enumerate(timeline.plan.order):
        events.append(_named("thread_name", rank, f"rank {rank}"))
        events += [_span(timeline, graph, rank, action) for action in actions]
    for rank, steps in enumerate(analysis.memory(timeline, profile)):
        counter = {"ph": "C", "pid": 0, "tid": rank, "name": f"bytes of rank {rank}"}
        events += [counter | {"ts": 1e6 * second, "args": {"bytes": held}} for second, held in steps]
    number = 0
    for target in (action for actions in timeline.plan.order for action in actions):
        for source in graph.sources(target):
            if graph.rank_of(source) != graph.rank_of(target):
                number += 1
                events += _arrow(timeline, graph, source, target, number)
    facts = {"digest": timeline.plan.digest, "seconds": timeline.makespan, "bubble": timeline.bubble}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": facts | {"times": profile.device}}


def _named(kind: str, rank: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": 0, "tid": rank, "name": kind, "args": {"name": name}}


def _span(timeline: Timeline, graph: PipelineGraph, rank: int, action: Action) -> dict[str, Any]:
    begin, end = timeline.times[action]
    part, chunk = graph.parts[action.part], graph.chunks[action.chunk]
    again = {(chunk, number): layers for chunk, number, layers in timeline.plan.recompute}
    facts: dict[str, Any] = {
        "microbatch": part.microbatch,
        "items": list(part.items),
        "size": part.size,
        "layers": f"{chunk.begin} to {chunk.end - 1}",
    }
    return {
        "ph": "X",
        "pid": 0,
        "tid": rank,
        "name": f"{NAMES[action.kind]} {part.module} {part.microbatch}",
        "cat": f"{part.module},{action.kind}",
        "ts": 1e6 * begin,
        "dur": 1e6 * (end - begin),
        "args": facts | {"action": str(action), "recomputed layers": again.get((action.chunk, action.part), 0)},
    }


def _arrow(
    timeline: Timeline, graph: PipelineGraph, source: Action, target: Action, number: int
) -> list[dict[str, Any]]:
    """A message, drawn from the middle of the pass that makes it to the middle of the one that takes it in."""
    events = []
    for phase, action in (("s", source), ("f", target)):
        middle = sum(timeline.times[action]) / 2
        event = {"ph": phase, "pid": 0, "tid": graph.rank_of(action), "id": number, "name": "message", "cat": "message"}
        events.append(event | {"ts": 1e6 * middle} | ({"bp": "e"} if phase == "f" else {}))
    return events
