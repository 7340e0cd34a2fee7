"""Plans under a cap of bytes: never stuck and never above it, where the published rule gets stuck."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from stepstack.planning.pipeline.graph import PlanError
from stepstack.planning.pipeline.memory import Bank, needs
from stepstack.planning.pipeline.partition import chunks, graph_of
from stepstack.planning.pipeline.schedule import Passes, dual_queue, list_schedule
from stepstack.planning.pipeline.search import coarse_order
from stepstack.planning.pipeline.timeline import timeline
from tests.pipeline_batches import VLM_37B, pictures, random_case


class PublishedRule(Bank):
    """Forward passes are off while they would exceed the cap, whoever asks."""

    def admits_forward(self, stage: int) -> bool:
        return self.fits(self.stages[stage].rank, self.stages[stage].saved)


def least_cap(passes: Passes) -> int:
    """Bytes below which some microbatch could not be carried out alone."""
    return max(map(max, needs(passes.held, passes.graph.ranks, passes.graph.microbatches)))


@pytest.mark.parametrize("start", range(0, 1000, 250))
def test_a_cap_is_kept_and_nobody_gets_stuck(start):
    for seed in range(start, start + 250):
        case, share = random_case(seed), Random(seed).choice([0, 0.1, 0.5, 0.9])
        passes = Passes.of(case.graph, case.profile)
        peak = max(timeline(dual_queue(case.graph, case.profile, case.priorities), case.profile).peak_bytes)
        least = least_cap(passes)
        cap = max(least, least + share * (peak - least))
        plan = dual_queue(case.graph, case.profile, case.priorities, cap)
        plan.check()
        found = timeline(plan, case.profile)
        assert max(found.peak_bytes) <= cap, seed
        assert found.makespan == passes.schedule(passes.ordered(case.priorities), cap).makespan


def test_a_cap_that_does_not_bind_changes_nothing():
    for seed in range(50):
        case = random_case(seed)
        free = dual_queue(case.graph, case.profile, case.priorities)
        assert dual_queue(case.graph, case.profile, case.priorities, 1e12) == free


def test_a_cap_below_one_microbatch_is_one_error():
    cut = chunks(VLM_37B, 4, {"vision": 1, "text": 2})
    graph = graph_of(VLM_37B, pictures(Random(0), 3, 4, 8), cut, {"vision": 4})
    passes = Passes.of(graph, VLM_37B)
    least = least_cap(passes)
    dual_queue(graph, VLM_37B, cap=least)
    with pytest.raises(
        PlanError, match=rf"rank \d needs {least} bytes for microbatch \d alone, the cap is {least - 1}"
    ):
        dual_queue(graph, VLM_37B, cap=least - 1)


@pytest.mark.parametrize("split", [False, True])
def test_the_published_rule_gets_stuck_where_ours_does_not(split):
    """At half of the peak without a cap, 4 ranks, 8 microbatches of 0 to 32 pictures, encoders first: early forward
    passes of encoders take the bytes of the microbatches that could give some back."""
    cut = chunks(VLM_37B, 4, {"vision": 1, "text": 2})
    for seed in range(20):
        graph = graph_of(VLM_37B, pictures(Random(seed), 8, 0, 32), cut, {"vision": 12})
        graph = replace(graph, split=frozenset(range(len(cut)))) if split else graph
        passes = Passes.of(graph, VLM_37B)
        order = coarse_order(passes)
        free = timeline(passes.plan(passes.schedule(order)), VLM_37B)
        cap = max(least_cap(passes), 0.5 * max(free.peak_bytes))
        published = PublishedRule(*(getattr(passes.bank(order, cap), name) for name in Bank.__slots__))
        assert passes.schedule(order, cap).makespan >= free.makespan
        with pytest.raises(PlanError, match="can never begin"):
            list_schedule(passes, order, published)


def test_the_bank_by_hand():
    """Cap 10 on one rank, two microbatches of two stages of 3 bytes: the second one may take 3 once, not twice, while
    the first still needs 3."""
    cut = chunks(VLM_37B, 1, {"vision": 1, "text": 1})
    graph = graph_of(VLM_37B, [{"vision": [3 / 64], "text": [3 / 64]}] * 2, cut, {})
    passes = Passes.of(graph, VLM_37B)
    assert [stage.saved for stage in passes.held] == [3, 3, 3, 3]
    bank = passes.bank(passes.segments, 10)
    assert bank.admits_forward(2)
    bank.forward(2)
    assert not bank.admits_forward(3)
    assert bank.admits_forward(0)
    bank.forward(0)
    bank.forward(1)
    assert not bank.admits_forward(3)
    bank.backward(1)
    assert bank.admits_forward(3)
