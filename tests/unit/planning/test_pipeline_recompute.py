"""Layers recomputed under a cap: greedy close to exact, exact the best there is, plans that keep what the cap says."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from random import Random

import numpy as np
import pytest

from stepstack.planning.pipeline.graph import Chunk, PipelinePlan, PlanError
from stepstack.planning.pipeline.memory import needs
from stepstack.planning.pipeline.partition import chunks, graph_of
from stepstack.planning.pipeline.recompute import (
    Candidate,
    RankMemory,
    exact,
    greedy,
    rank_memory,
    recomputed,
    search_with_recompute,
)
from stepstack.planning.pipeline.schedule import Passes, dual_queue
from stepstack.planning.pipeline.search import LocalSearch, MicrobatchOrder, search
from stepstack.planning.pipeline.timeline import timeline
from tests.pipeline_batches import VLM_37B, pictures, random_case

CUT = chunks(VLM_37B, 4, {"vision": 1, "text": 2})
INPUTS = replace(VLM_37B, modules=tuple(replace(one, hidden_bytes=0.1) for one in VLM_37B.modules))


def planned(seed: int, microbatches: int = 8, apart: bool = False) -> PipelinePlan:
    chosen = frozenset(range(len(CUT))) if apart else frozenset[int]()
    graph = graph_of(INPUTS, pictures(Random(seed), microbatches, 0, 32), CUT, {"vision": 12}, chosen)
    return dual_queue(graph, INPUTS)


def peak(plan: PipelinePlan) -> float:
    return max(timeline(plan, INPUTS).peak_bytes)


def test_what_a_recomputed_layer_costs():
    """A part of 8,192 tokens through 4 layers, 3 of them recomputed: 3.5 ms more each, and a tenth of a byte kept."""
    chunk = Chunk("text", 0, 4, 0)
    whole, again = INPUTS.cost(chunk, 8192), INPUTS.cost(chunk, 8192, 3)
    assert again.backward - whole.backward == pytest.approx(3 * 3.5e-3)
    assert again.input - whole.input == pytest.approx(3 * 3.5e-3)
    assert again.saved == pytest.approx(8192 * (1 + 3 * 0.1))
    assert (again.forward, again.weight, again.kept) == (whole.forward, whole.weight, whole.kept)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_greedy_is_within_5_percent_of_exact(share, apart):
    """Over three batches on four ranks; 0.7% on average, more on ranks that recompute next to nothing."""
    total = {greedy: 0.0, exact: 0.0}
    for seed in range(3):
        plan = planned(seed, apart=apart)
        cap = share * peak(plan)
        for rank in range(4):
            memory = rank_memory(plan, INPUTS, rank, cap)
            chosen = {choose: choose(memory) for choose in total}
            assert (chosen[greedy] is None) == (chosen[exact] is None)
            if chosen[exact] is not None:
                for choose, layers in chosen.items():
                    assert memory.left(layers).max() <= 1e-6 * cap
                    total[choose] += memory.seconds(layers)
                assert memory.seconds(chosen[exact]) <= memory.seconds(chosen[greedy]) + 1e-9
    assert 0 < total[exact] <= total[greedy] <= 1.05 * total[exact]


def test_exact_is_the_best_of_all_choices():
    random = Random(0)
    for _ in range(40):
        moments = 6
        candidates = []
        for number in range(random.randint(1, 4)):
            begin = random.randrange(moments)
            size, seconds = random.choice([1.0, 2.0, 3.5]), random.choice([1.0, 1.5])
            end = random.randint(begin + 1, moments)
            candidates.append(Candidate(number, 0, random.randint(1, 3), size, seconds, begin, end))
        memory = RankMemory(tuple(candidates), np.array([random.choice([-2.0, 0.0, 1.0, 2.0]) for _ in range(moments)]))
        every = [np.array(choice) for choice in product(*(range(one.layers + 1) for one in candidates))]
        fitting = [memory.seconds(choice) for choice in every if memory.left(choice).max() <= 1e-9]
        best, quick = exact(memory), greedy(memory)
        assert (best is None) == (quick is None) == (not fitting)
        if best is not None and quick is not None:
            assert memory.seconds(best) == pytest.approx(min(fitting))
            assert memory.left(quick).max() <= 1e-9


def test_a_recomputed_plan_keeps_the_cap_and_its_order():
    plan = planned(1)
    assert recomputed(plan, INPUTS, peak(plan)) == plan
    found = recomputed(plan, INPUTS, 0.6 * peak(plan))
    assert found is not None
    found.check()
    assert found.order == plan.order
    assert peak(found) <= 0.6 * peak(plan) * (1 + 1e-9)
    assert timeline(found, INPUTS).makespan > timeline(plan, INPUTS).makespan
    assert found.digest != plan.digest
    assert recomputed(plan, INPUTS, 0.01 * peak(plan)) is None


def test_recomputing_is_no_slower_and_goes_lower():
    """Under half of the peak it beats waiting; below one microbatch's bytes it is the only way, and far below there is
    none."""
    plan = planned(2, 6)
    least = max(map(max, needs(Passes.of(plan.graph, INPUTS).held, 4, 6)))
    options = LocalSearch(evaluations=6)
    for cap in (2 * peak(plan), max(least, 0.5 * peak(plan))):
        waits = search(plan.graph, INPUTS, options, cap)
        found = search_with_recompute(plan.graph, INPUTS, options, cap)
        found.check()
        assert peak(found) <= cap * (1 + 1e-9)
        assert timeline(found, INPUTS).makespan <= timeline(waits, INPUTS).makespan
    assert found.recompute
    below = search_with_recompute(plan.graph, INPUTS, options, 0.6 * least)
    assert peak(below) <= 0.6 * least * (1 + 1e-9)
    with pytest.raises(PlanError, match=r"for microbatch \d alone"):
        search_with_recompute(plan.graph, INPUTS, options, 0.05 * least)


def test_random_graphs_keep_their_caps():
    for seed in range(30):
        case = random_case(seed)
        passes = Passes.of(case.graph, case.profile)
        cap = max(map(max, needs(passes.held, case.graph.ranks, case.graph.microbatches)))
        plan = search_with_recompute(case.graph, case.profile, MicrobatchOrder(), cap)
        plan.check()
        assert max(timeline(plan, case.profile).peak_bytes) <= cap * (1 + 1e-9)
        waits = search(case.graph, case.profile, MicrobatchOrder(), cap)
        assert timeline(plan, case.profile).makespan <= timeline(waits, case.profile).makespan


@pytest.mark.parametrize("entry", [(0, 0, 17), (0, 0, 0), (99, 0, 1), (0, 99, 1)])
def test_layers_that_are_not_there_cannot_be_recomputed(entry):
    with pytest.raises(PlanError, match="cannot be recomputed"):
        replace(planned(0, 2), recompute=(entry,)).check()
