"""Dual-queue plans: valid, as long as the clock says, 1F1B where there is one module, W in idle time, quick."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from time import process_time

import pytest

from stepstack.planning.pipeline.graph import Action, PlanError
from stepstack.planning.pipeline.partition import chunks, graph_of
from stepstack.planning.pipeline.schedule import Passes, dual_queue
from stepstack.planning.pipeline.split import seconds_in_order, split_costs, split_graph
from stepstack.planning.pipeline.timeline import timeline
from tests.pipeline_batches import TEXT_ONLY, VLM_37B, pictures, random_case, texts


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_plans_are_valid_and_last_as_long_as_the_clock_says(start):
    for seed in range(start, start + 100):
        case = random_case(seed)
        passes = Passes.of(case.graph, case.profile)
        for priorities in (None, case.priorities):
            plan = dual_queue(case.graph, case.profile, priorities)
            plan.check()
            scheduled = passes.schedule(passes.ordered(priorities))
            assert timeline(plan, case.profile).makespan == scheduled.makespan, seed
            assert plan == passes.plan(scheduled)


def test_a_plan_is_a_function_of_its_arguments():
    first, second = (random_case(7) for _ in range(2))
    assert dual_queue(first.graph, first.profile).digest == dual_queue(second.graph, second.profile).digest


def test_one_forward_one_backward_where_there_is_one_module():
    """The last rank is the clearest: its passes alternate from the first on."""
    graph = graph_of(TEXT_ONLY, texts(6), chunks(TEXT_ONLY, 3, {"text": 1}), {})
    last = dual_queue(graph, TEXT_ONLY).order[2]
    assert [str(action) for action in last[:6]] == ["2F0", "2B0", "2F1", "2B1", "2F2", "2B2"]


def test_priorities_are_followed_and_asked_for():
    graph = graph_of(TEXT_ONLY, texts(3), chunks(TEXT_ONLY, 1, {"text": 1}), {})
    plan = dual_queue(graph, TEXT_ONLY, {(0, "text"): 1, (1, "text"): 3, (2, "text"): 2})
    assert [action.part for action in plan.order[0] if action.kind == "F"] == [1, 2, 0]
    with pytest.raises(PlanError, match=r"no priority for \(2, 'text'\)"):
        dual_queue(graph, TEXT_ONLY, {(0, "text"): 1, (1, "text"): 3})


def test_weight_gradients_fill_idle_time_alone():
    """On two ranks, W of the last rank waits until all else is done; the first rank does W while it waits for I."""
    cut = chunks(TEXT_ONLY, 2, {"text": 1})
    plan = dual_queue(graph_of(TEXT_ONLY, texts(3), cut, {}, frozenset({0, 1})), TEXT_ONLY)
    assert [action.kind for action in plan.order[1]] == list("FIFIFIWWW")
    whole = dual_queue(graph_of(TEXT_ONLY, texts(3), cut, {}), TEXT_ONLY)
    assert timeline(plan, TEXT_ONLY).makespan < timeline(whole, TEXT_ONLY).makespan


def dear(ratio: float):
    """The 37B profile with input and weight gradients of the vision module that take ``ratio`` times their whole."""
    vision, text = VLM_37B.modules
    layer = replace(
        vision.layer, **{name: tuple(ratio * x for x in getattr(vision.layer, name)) for name in ("input", "weight")}
    )
    return replace(VLM_37B, modules=(replace(vision, layer=layer), text))


def test_chunks_are_split_where_that_pays():
    cut = chunks(VLM_37B, 4, {"vision": 1, "text": 2})
    graph = graph_of(VLM_37B, pictures(Random(1), 8, 8, 24), cut, {"vision": 8})
    vision = frozenset(range(4))
    assert split_graph(graph, VLM_37B).split == frozenset(range(12))
    assert split_graph(graph, dear(2.0)).split == frozenset(range(12)) - vision
    assert split_graph(graph, VLM_37B, "never").split == frozenset()
    assert split_graph(graph, dear(2.0), "always").split == frozenset(range(12))
    assert set(split_costs(graph, dear(2.0)).items()) == {(c, 2.0 if c in vision else 1.0) for c in range(12)}
    for ratio in (1.0, 1.3, 3.0):
        auto, never, always = (seconds_in_order(graph, dear(ratio), choice) for choice in ("auto", "never", "always"))
        assert auto <= min(never, always)


def test_backward_passes_are_whole_or_apart_by_chunk():
    """W of chunks that are not split is not planned, I of those that are not whole."""
    case = random_case(3)
    kinds = {
        (action.chunk, action.kind) for actions in dual_queue(case.graph, case.profile).order for action in actions
    }
    for chunk in range(len(case.graph.chunks)):
        assert (chunk, "B") not in kinds or chunk not in case.graph.split
        assert (chunk, "W") not in kinds or chunk in case.graph.split
    assert dual_queue(case.graph, case.profile).order[0][0] == Action("F", 0, 0)


def test_64_microbatches_on_16_ranks_take_milliseconds():
    """Goal: 4 us an action on a quiet machine, here with room for a loaded one; best of five."""
    cut = chunks(VLM_37B, 16, {"vision": 1, "text": 2})
    graph = graph_of(VLM_37B, pictures(Random(2), 64, 0, 32), cut, {"vision": 12}, frozenset(range(len(cut))))
    passes = Passes.of(graph, VLM_37B)
    seconds = []
    for _ in range(5):
        begin = process_time()
        passes.schedule(passes.segments)
        seconds.append(process_time() - begin)
    assert min(seconds) / len(graph.actions) < 12e-6
