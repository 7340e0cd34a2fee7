"""Lower bounds: below every plan, met by pipelines that are known to be best, close to what CP-SAT proves."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from random import Random

import pytest

from stepstack.planning.pipeline.bounds import lower_bound
from stepstack.planning.pipeline.graph import PipelinePlan, PlanError
from stepstack.planning.pipeline.partition import chunks, graph_of
from stepstack.planning.pipeline.schedule import dual_queue
from stepstack.planning.pipeline.search import LocalSearch, search
from stepstack.planning.pipeline.timeline import costs_of, timeline
from stepstack.planning.timing import Link
from tests.pipeline_batches import TEXT_ONLY, VLM_37B, pictures, random_case, texts


def test_no_plan_is_faster_than_the_bound():
    for seed in range(200):
        case = random_case(seed)
        bound = lower_bound(case.graph, case.profile)
        found = timeline(dual_queue(case.graph, case.profile, case.priorities), case.profile)
        assert bound <= found.makespan * (1 + 1e-12), seed
        assert bound >= max(found.busy) * (1 - 1e-12)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("link", [None, Link(bytes=(0, 1), seconds=(0, 30))])
def test_the_bound_is_below_the_best_of_all_orders(split, link):
    """Two ranks and two microbatches: every pair of orders is tried."""
    (module,) = TEXT_ONLY.modules
    profile = replace(TEXT_ONLY, modules=(replace(module, hidden_bytes=1),), link=link)
    graph = graph_of(profile, [{"text": [1]}, {"text": [3]}], chunks(profile, 2, {"text": 1}), {})
    graph = replace(graph, split=frozenset({1})) if split else graph
    orders = [permutations([action for action in graph.actions if action.chunk == rank]) for rank in range(2)]
    firsts, seconds = map(list, orders)
    best = float("inf")
    for first in firsts:
        for second in seconds:
            try:
                best = min(best, timeline(PipelinePlan(graph, (first, second)), profile).makespan)
            except PlanError:
                continue  # orders that wait for each other are no plan
    bound, found = lower_bound(graph, profile), timeline(search(graph, profile, LocalSearch()), profile).makespan
    assert bound <= best <= found
    assert found <= 1.05 * best


def test_the_bound_of_one_even_chain():
    """P ranks, m microbatches, F + B = t on each: (m + P - 1) t without W apart, which 1F1B reaches, since before the
    first pass of a rank r others take r F, and after its last one r B."""
    for ranks, many in ((2, 4), (4, 8)):
        graph = graph_of(TEXT_ONLY, texts(many), chunks(TEXT_ONLY, ranks, {"text": 1}), {})
        each = 3.0 * 64 / ranks
        assert lower_bound(graph, TEXT_ONLY) == pytest.approx((many + ranks - 1) * each)
        assert timeline(dual_queue(graph, TEXT_ONLY), TEXT_ONLY).makespan == pytest.approx((many + ranks - 1) * each)


@pytest.mark.parametrize("seed", range(8))
def test_searched_plans_are_within_5_percent_of_cp_sat(seed):
    """The 37B model on 2 to 4 ranks, 3 to 5 microbatches, every other case with W apart. CP-SAT has one worker, a limit
    in its own deterministic time and our plan as a hint; it proves little beyond 80 passes."""
    cp_model = pytest.importorskip("ortools.sat.python.cp_model", reason="ortools is not installed")
    random = Random(seed)
    ranks, many = random.choice([2, 2, 3, 4]), random.choice([3, 4, 5])
    cut = chunks(VLM_37B, ranks, {"vision": 1, "text": random.choice([1, 2])})
    apart = frozenset(range(len(cut))) if seed % 2 else frozenset[int]()
    graph = graph_of(VLM_37B, pictures(random, many, 0, 16), cut, {"vision": 12}, apart)
    found = timeline(search(graph, VLM_37B, LocalSearch(evaluations=200)), VLM_37B)
    costs, scale = costs_of(graph, VLM_37B), 100_000 / found.makespan
    model, ends, starts = cp_model.CpModel(), {}, {}
    intervals = [[] for _ in range(ranks)]
    for action in graph.actions:
        length = round(costs[action.chunk, action.part].seconds(action.kind) * scale)
        starts[action] = model.new_int_var(0, 200_000, str(action))
        ends[action] = starts[action] + length
        interval = model.new_fixed_size_interval_var(starts[action], length, str(action))
        intervals[graph.rank_of(action)].append(interval)
        model.add_hint(starts[action], round(found.times[action][0] * scale))
    for action in graph.actions:
        for need in graph.needs(action):
            model.add(starts[action] >= ends[need])
    for row in intervals:
        model.add_no_overlap(row)
    makespan = model.new_int_var(0, 200_000, "makespan")
    model.add_max_equality(makespan, list(ends.values()))
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers, solver.parameters.max_deterministic_time = 1, 1.0
    status = solver.solve(model)
    assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    assert lower_bound(graph, VLM_37B) * scale <= solver.objective_value + len(graph.actions)  # rounded lengths
    assert 1.05 * solver.objective_value >= 100_000
