"""Passes of a batch, what each needs, plans that are none, and the clock of a plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from stepstack.planning.pipeline.graph import (
    Action,
    Chunk,
    PipelineGraph,
    PipelineModule,
    PipelinePlan,
    PlanError,
    SubMicrobatch,
)
from stepstack.planning.pipeline.profile import LayerProfile, ModuleProfile, PipelineProfile
from stepstack.planning.pipeline.schedule import dual_queue
from stepstack.planning.pipeline.timeline import recorded, timeline
from stepstack.planning.timing import Link

MODULES = (PipelineModule("vision", 2), PipelineModule("text", 4, reads=("vision",)))
CHUNKS = (
    Chunk("vision", 0, 1, 0),
    Chunk("vision", 1, 2, 1),
    Chunk("text", 0, 2, 0),
    Chunk("text", 2, 4, 1),
)
PARTS = (
    SubMicrobatch(0, "vision", (0, 1), 8),
    SubMicrobatch(0, "vision", (2,), 4),
    SubMicrobatch(0, "text", (0,), 10),
    SubMicrobatch(1, "text", (0,), 20),
)
GRAPH = PipelineGraph(MODULES, CHUNKS, PARTS)


def actions(text: str) -> tuple[Action, ...]:
    return tuple(Action(word[1], int(word[0]), int(word[2])) for word in text.split())  # type: ignore[arg-type]


PLAN = PipelinePlan(
    GRAPH,
    (
        actions("0F0 0F1 2F3 2F2 2B3 2B2 0B0 0B1"),
        actions("1F0 1F1 3F3 3B3 3F2 3B2 1B1 1B0"),
    ),
)


def line(slope: float, layers: int = 1) -> LayerProfile:
    """Forward seconds of ``slope`` a unit of size, backward twice; a byte a unit."""
    forward = (0.0, slope * layers)
    double = (0.0, 2 * slope * layers)
    return LayerProfile(
        sizes=(0, 1), forward=forward, backward=double, input=forward, weight=forward, saved=(0, 1), kept=(0, 0.5)
    )


PROFILE = PipelineProfile(
    model="m",
    device="d",
    modules=(
        ModuleProfile(name="vision", layers=2, layer=line(1), hidden_bytes=2, output_bytes=3),
        ModuleProfile(name="text", layers=4, reads=("vision",), layer=line(1), exit=line(3), hidden_bytes=5),
    ),
)


def test_what_each_pass_needs():
    assert GRAPH.needs(Action("F", 0, 0)) == ()
    assert GRAPH.needs(Action("F", 1, 0)) == (Action("F", 0, 0),)
    assert GRAPH.needs(Action("F", 2, 2)) == (Action("F", 1, 0), Action("F", 1, 1))  # all pictures of its microbatch
    assert GRAPH.needs(Action("F", 2, 3)) == ()  # a microbatch without pictures
    assert GRAPH.needs(Action("B", 3, 2)) == (Action("F", 3, 2),)
    assert GRAPH.needs(Action("B", 1, 1)) == (Action("B", 2, 2), Action("F", 1, 1))
    assert (GRAPH.ranks, GRAPH.microbatches, len(GRAPH.actions)) == (2, 2, 16)
    split = replace(GRAPH, split=frozenset({2}))
    assert split.needs(Action("B", 1, 0)) == (Action("I", 2, 2), Action("F", 1, 0))
    assert split.needs(Action("W", 2, 2)) == (Action("I", 2, 2),)
    assert len(split.actions) == 18


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"modules": (MODULES[1], MODULES[0])}, "text reads .*name modules that stand before it"),
        ({"chunks": CHUNKS[:3]}, "text of 4 layers: its chunks end at layer 2"),
        (
            {"chunks": (CHUNKS[0], CHUNKS[0], *CHUNKS[2:])},
            "vision of 2 layers: a chunk of layers 0 to 1 on rank 0 at 1",
        ),
        ({"parts": ()}, "without a microbatch"),
        ({"parts": (SubMicrobatch(0, "vision", (0,), 1),)}, "microbatch 0 has items of vision, and none of text"),
        ({"parts": (SubMicrobatch(0, "text", (), 1),)}, "without content"),
        ({"parts": (SubMicrobatch(0, "audio", (0,), 1),)}, "there is no module audio"),
        ({"split": frozenset({9})}, r"split names chunks \[9\]"),
    ],
)
def test_what_fits_no_graph_is_refused(change, why):
    with pytest.raises(PlanError, match=why):
        replace(GRAPH, **change)


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ((PLAN.order[0][:-1], PLAN.order[1]), "1 of 16 passes are missing, such as 0B1"),
        ((*PLAN.order[:1], (*PLAN.order[1], Action("B", 1, 0))), "pass 1B0 stands in the plan 2 times"),
        ((PLAN.order[1], PLAN.order[0]), "rank 0: 1F0 is a pass of rank 1"),
        (((*PLAN.order[0], Action("W", 0, 0)), PLAN.order[1]), "0W0 is no pass of this batch"),
        (((Action("F", 7, 0),), PLAN.order[1]), "rank 0: 7F0 is no pass"),
        ((actions("0F0 0F1 2F2 2B3 2F3 2B2 0B0 0B1"), PLAN.order[1]), "wait for each other for ever: rank 0 at 2B3"),
    ],
)
def test_orders_that_are_no_plan_are_refused(order, why):
    with pytest.raises(PlanError, match=why):
        PipelinePlan(GRAPH, order).check()


def test_a_plan_in_time_and_its_digest():
    PLAN.check()
    seen: set[Action] = set()
    for action in PLAN.in_time():
        assert set(GRAPH.needs(action)) <= seen
        seen.add(action)
    other = PipelinePlan(GRAPH, (actions("0F1 0F0 2F3 2F2 2B3 2B2 0B0 0B1"), PLAN.order[1]))
    assert other.digest != PLAN.digest == PipelinePlan(GRAPH, PLAN.order).digest


def test_the_clock_by_hand():
    """Rank 0: 0F0 0-8, 0F1 8-12, 2F3 12-52, 2F2 waits for 1F1 (16) and goes on at 52-72. Rank 1: 1F0 8-16, 1F1 16-20,
    3F3 from 52, two layers and the exit at size 20, 100; its backward twice that."""
    found = timeline(PLAN, PROFILE)
    assert found.times[Action("F", 2, 2)] == (52, 72)
    assert found.times[Action("F", 1, 1)] == (16, 20)
    assert found.times[Action("F", 3, 3)] == (52, 152)
    assert found.times[Action("B", 3, 3)] == (152, 352)
    assert found.times[Action("B", 2, 3)] == (352, 432)
    assert found.makespan == max(end for _, end in found.times.values())
    assert found.bubble == pytest.approx(1 - sum(found.busy) / 2 / found.makespan)
    assert found.peak_bytes == (8 + 4 + 40 + 20, 8 + 4 + 60)  # the exit keeps as much as a layer


def test_a_timeline_comes_back_from_json():
    split = PipelineGraph(MODULES, CHUNKS, PARTS, frozenset({3}))
    found = timeline(dual_queue(split, PROFILE), PROFILE)
    assert recorded(json.loads(json.dumps(found.record()))) == found


def test_a_link_takes_its_time_between_ranks_alone():
    linked = replace(PROFILE, link=Link(bytes=(0, 1), seconds=(0, 0.5)))
    found, free = timeline(PLAN, linked), timeline(PLAN, PROFILE)
    assert found.times[Action("F", 1, 0)][0] == free.times[Action("F", 1, 0)][0] + 0.5 * 2 * 8
    assert linked.transfer(GRAPH, Action("F", 1, 0), Action("F", 2, 2)) == 0.5 * 3 * 8  # outputs, to who reads them
    assert linked.transfer(GRAPH, Action("B", 2, 2), Action("B", 1, 0)) == 0.5 * 3 * 8
    assert linked.transfer(GRAPH, Action("B", 3, 2), Action("B", 2, 2)) == 0.5 * 5 * 10
    assert linked.transfer(GRAPH, Action("F", 0, 0), Action("B", 0, 0)) == 0
