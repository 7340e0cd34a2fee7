"""What is read out of a timeline agrees with it, whatever the plan: bubbles, bytes, critical path, trace, pictures."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.planning.pipeline import static
from stepstack.planning.pipeline.graph import PipelineGraph
from stepstack.planning.pipeline.partition import chunks, graph_of
from stepstack.planning.pipeline.profile import LayerProfile, ModuleProfile, PipelineProfile
from stepstack.planning.pipeline.timeline import Timeline, timeline
from stepstack.planning.timing import Link
from stepstack.simulation.pipeline import analysis, figures, trace
from tests.unit.planning.test_pipeline_export import shuffled


def layer(seconds: float) -> LayerProfile:
    double = (0.0, 2 * seconds)
    half = (0.0, seconds)
    return LayerProfile(sizes=(0, 1), forward=half, backward=double, input=half, weight=half, saved=(0, 4), kept=(0, 3))


PROFILE = PipelineProfile(
    model="m",
    device="d",
    modules=(
        ModuleProfile(name="vision", layers=4, layer=layer(1), hidden_bytes=2, output_bytes=3),
        ModuleProfile(name="text", layers=8, reads=("vision",), layer=layer(2), exit=layer(3), hidden_bytes=5),
    ),
    link=Link(bytes=(0, 1), seconds=(0, 0.25)),
)


def drawn(seed: int) -> Timeline:
    """A valid plan in a random order: microbatches with and without pictures, some chunks split, on 1 to 4 ranks."""
    random = Random(seed)
    batch = [
        {"text": [random.randint(1, 4)], **({"vision": [1.0] * n} if (n := random.randint(0, 3)) else {})}
        for _ in range(random.randint(1, 4))
    ]
    ranks = random.choice((1, 2, 4))
    cut = chunks(PROFILE, ranks, {"vision": 1, "text": random.choice((1, 2))})
    split = frozenset(number for number in range(len(cut)) if random.random() < 0.5)
    return timeline(shuffled(graph_of(PROFILE, batch, cut, {"vision": 2}, split), seed), PROFILE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_bubbles_bytes_and_the_critical_path_agree_with_the_clock(seed):
    found = drawn(seed)
    assert sum(analysis.bubbles(found).values()) == pytest.approx(found.bubble, abs=1e-12)
    for rank, steps in enumerate(analysis.memory(found, PROFILE)):
        assert max(held for _, held in steps) == pytest.approx(found.peak_bytes[rank])
        assert steps[-1][1] == pytest.approx(0)
        assert [second for second, _ in steps] == sorted(second for second, _ in steps)
    path = analysis.critical_path(found, PROFILE)
    assert sum(one.end - one.begin + one.wait for one in path) == pytest.approx(found.makespan)
    graph = found.plan.graph
    for before, after in pairwise(path):
        same = before.rank == after.rank
        assert same or before.action in graph.needs(after.action)
        assert after.wait == pytest.approx(0 if same else PROFILE.transfer(graph, before.action, after.action))
    assert path[0].begin == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_trace_has_each_pass_once_in_microseconds_and_each_message(seed):
    found = drawn(seed)
    content = json.loads(json.dumps(trace.chrome_trace(found, PROFILE)))
    spans = {event["args"]["action"]: event for event in content["traceEvents"] if event["ph"] == "X"}
    assert spans.keys() == {str(action) for action in found.times}
    for action, (begin, end) in found.times.items():
        event = spans[str(action)]
        assert (event["ts"], event["dur"]) == (pytest.approx(1e6 * begin), pytest.approx(1e6 * (end - begin)))
        assert event["tid"] == found.plan.graph.rank_of(action)
    graph = found.plan.graph
    across = [
        (source, target)
        for target in found.times
        for source in graph.sources(target)
        if graph.rank_of(source) != graph.rank_of(target)
    ]
    arrows = [event for event in content["traceEvents"] if event["ph"] in "sf"]
    assert len(arrows) == 2 * len(across)
    assert content["otherData"]["digest"] == found.plan.digest


def test_pictures_are_whole_files(tmp_path):
    found = drawn(5)
    figure = figures.gantt({"one": found, "two": found})
    svg = figures.encode(figure, "svg")
    assert svg == figures.encode(figures.gantt({"one": found, "two": found}), "svg")  # byte for byte
    assert svg.count(b"(simulated)") >= 2
    assert figures.encode(figure, "png").startswith(b"\x89PNG")
    text = figures.page(tmp_path / "a.html", "A plan", {"": found}, PROFILE).read_text()
    assert "Critical path" in text
    assert found.plan.digest in text
    assert "://" not in text.replace("http://www.w3.org", "")  # nothing is fetched


def test_the_family_leaves_out_what_cannot_be_cut():
    batch = [{"text": [1.0], "vision": [1.0]}] * 5
    assert set(static.family(PROFILE, batch, 8)) == {"1F1B"}  # 12 layers
    assert set(static.family(PROFILE, batch, 2)) == {"1F1B"}  # 5 microbatches are no 2 equal rounds
    assert len(static.family(PROFILE, batch[:4], 2)) == 3
    for plan in static.family(PROFILE, batch[:4], 2).values():
        plan.check()
        assert isinstance(plan.graph, PipelineGraph)
