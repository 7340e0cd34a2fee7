"""Studies reach what the planner promises on published costs, and show where it loses."""

from __future__ import annotations

import pytest

from stepstack.planning.pipeline.profile import LayerProfile, ModuleProfile, PipelineProfile
from stepstack.planning.pipeline.search import LocalSearch
from stepstack.report.formats import render
from stepstack.simulation.pipeline import study
from stepstack.simulation.pipeline.study import FILLED, ORDER, SEARCHED, STATIC


def linear(size: float, seconds: float) -> LayerProfile:
    """Forward a third of the seconds, backward two, in equal halves of gradients."""
    third = (0.0, seconds / 3)
    return LayerProfile(
        sizes=(0, size),
        forward=third,
        backward=(0, 2 * seconds / 3),
        input=third,
        weight=third,
        saved=(0, 240e6),
        kept=(0, 240e6),
    )


PROFILE = PipelineProfile(  # the 37B model of the paper, without times of links
    model="37b",
    device="published",
    modules=(
        ModuleProfile(name="vision", layers=64, layer=linear(8, 6.75e-3), layer_parameters=68e6),
        ModuleProfile(name="text", layers=64, reads=("vision",), layer=linear(8192, 10.5e-3), layer_parameters=488e6),
    ),
)
CUT = study.ModelCut.of(PROFILE, 4, {"vision": 1, "text": 2}, {"vision": 12})
OPTIONS = LocalSearch(evaluations=48)


@pytest.fixture(scope="module")
def drift() -> dict[int, study.Seconds]:
    return {many: study.drift(PROFILE, CUT, many, OPTIONS) for many in (8, 16)}


@pytest.mark.parametrize("many", [8, 16])
def test_a_drifting_stream_gains_what_is_promised_over_static_pipelines(drift, many):
    seconds = {plan: sum(values) for plan, values in drift[many].items()}
    assert all(len(values) == len(study.DRIFT) for values in drift[many].values())
    assert seconds[STATIC] / seconds[f"{SEARCHED}, W apart"] >= 1.15
    assert seconds[STATIC] / seconds[SEARCHED] >= 1.10
    assert seconds[FILLED] / seconds[f"{SEARCHED}, W apart"] >= 1.08
    assert seconds[study.PARAMETERS] > 1.3 * seconds[STATIC]
    for suffix in ("", ", W apart"):
        assert seconds[study.BOUND + suffix] <= seconds[SEARCHED + suffix] <= seconds[ORDER + suffix]
    assert seconds[f"{ORDER}, W apart"] / seconds[f"{SEARCHED}, W apart"] < 1.01  # with W the order hardly matters
    assert "over the best 1F1B family" in render([study.compare_table("a", {"8": drift[many]})], "md")


def test_where_it_loses_is_shown():
    found = study.mixes(PROFILE, CUT, 8, OPTIONS)
    table = study.mixes_table(found)
    cells = {str(row[0]): row for row in table.rows}
    assert cells["text only"][3].startswith("-")  # two chunks of text a rank against four stages
    assert float(cells["16 in each"][3].rstrip("%")) < 3  # searched, without W
    assert float(cells["24 to 48"][5].rstrip("%")) > 12


def test_each_part_of_the_planner_gains_in_the_papers_order():
    found = study.ablation(PROFILE, study.drawn(study.DRIFT, 8), CUT, OPTIONS)
    steps = ["base", "+ partitioner", "+ interleaving", "+ reordering", "+ memory", "+ W apart (ours)"]
    assert list(found) == steps
    assert list(found.values()) == sorted(found.values(), reverse=True)
    text = render([study.ablation_table("m", found, {"base": 26.13, "+ partitioner": 22.27}, "there")], "md")
    assert "22.27, +17.3%" in text


def test_caps_cost_time_and_are_kept():
    found = study.memory_sweep(PROFILE, study.drawn(study.DRIFT[:4], 8), CUT)
    assert max(one.fullest for one in found) <= 1 + 1e-9
    slower = {way: [one.slower for one in found if one.way == way] for way in study.WAYS}
    for losses in slower.values():
        assert losses[0] == pytest.approx(0)
        assert losses[-1] == max(losses) > 0.1  # between them a cap may happen to help a list scheduler
    whole, apart, again = slower.values()
    assert whole[-1] > apart[-1] >= again[-1]  # the last may wait as well as recompute
    assert "no plan got stuck" in render([study.memory_table(found)], "md")


def test_recomputing_all_layers_keeps_their_inputs_and_costs_a_forward_pass():
    module = study.recomputing(PROFILE).module("text")
    cost, before = module.layer.at(8192), PROFILE.module("text").layer.at(8192)
    assert cost.backward == pytest.approx(before.backward + before.forward)
    assert cost.input == pytest.approx(before.input + before.forward)
    assert (cost.weight, cost.saved) == (before.weight, 0)  # this profile has no bytes of messages


def test_static_pipelines_get_as_many_stages_as_the_plan_has_chunks():
    assert CUT.rivals == 4
    assert study.ModelCut.of(PROFILE, 4, {"vision": 3, "text": 4}, {}).rivals == 8
