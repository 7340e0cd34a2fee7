"""The file of `stepstack plan pipeline`: what it may hold, the plans it leads to, and their table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stepstack import config
from stepstack.config import ConfigError
from stepstack.planning.pipeline.graph import PlanError
from stepstack.planning.pipeline.job import (
    PLANNED,
    DrawnBatches,
    DrawnItems,
    ListedBatches,
    PipelineJob,
    PipelineOptions,
    as_json,
    choose_cut,
    make_plan,
    plan_batch,
    table,
)
from stepstack.planning.pipeline.search import MicrobatchOrder, TreeSearch
from stepstack.planning.pipeline.timeline import timeline
from tests.pipeline_batches import VLM_37B

MIX = "{vision: {low: 0, high: 6, size: 169}, text: {low: 1, high: 1, size: 8192}}"


@pytest.fixture
def written(tmp_path: Path):
    """A function that writes a job beside the profile of the 37B model and reads it."""
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(asdict(VLM_37B)))

    def write(**keys: str) -> PipelineJob:
        given = {"profile": str(profile), "ranks": "2"}
        given["batches"] = f"{{type: drawn, batches: 2, microbatches: 4, items: {MIX}}}"
        file = tmp_path / "job.yaml"
        file.write_text("".join(f"{key}: {value}\n" for key, value in (given | keys).items()))
        return config.read(PipelineJob, file)

    return write


def test_a_plan_beside_every_baseline(written):
    job = written(
        options="{segments: {vision: 1, text: 2}, parts: {vision: 4}, priorities: {type: local, evaluations: 8}}"
    )
    outcome = make_plan(job)
    assert len(outcome.plans) == 2
    assert outcome.left == ()
    text = table(outcome)
    for lines, bound, plan in zip(outcome.timelines, outcome.bounds, outcome.plans, strict=True):
        plan.check()
        for line in lines.values():
            line.plan.check()
            assert line.makespan >= lines[PLANNED].makespan * 0.9
        assert bound <= lines[PLANNED].makespan
        assert lines[PLANNED].makespan <= lines["microbatch order"].makespan
        assert (
            lines["interleaved 1F1B, 4 stages"].makespan
            < lines["interleaved 1F1B, 4 stages, parameter-balanced"].makespan
        )
    for name in (
        "GPipe",
        "1F1B",
        "1F1B, W filled in",
        "ZB-H1",
        "ZB-V",
        "LoopedBFS, 2 stages",
        "coarse, encoders first",
    ):
        assert name in text
    assert "vision in 1 chunks a rank, at most 4 items a part; text in 2 chunks a rank, whole" in text
    assert "100% of the chunks" in text


def test_a_plan_is_a_function_of_its_file(written):
    first, again = (json.dumps(as_json(make_plan(written()))) for _ in range(2))
    assert first == again
    values = json.loads(first)
    assert values["batches"][0]["plans"][PLANNED]["makespan"] > values["batches"][0]["lower_bound"] > 0
    assert values["batches"][0]["order"][0][0][:2] == "0F"
    other = f"{{type: drawn, batches: 2, microbatches: 4, seed: 1, items: {MIX}}}"
    assert json.dumps(as_json(make_plan(written(batches=other)))) != first


def test_baselines_that_cannot_be_are_named(written, tmp_path):
    few = replace(VLM_37B, modules=tuple(replace(one, layers=3, layer_parameters=0) for one in VLM_37B.modules))
    (tmp_path / "few.json").write_text(json.dumps(asdict(few)))
    five = "{text: [8192]}, {text: [8192], vision: [169]}, {text: [100]}, {text: [9]}, {text: [9]}"
    listed = f"{{type: list, batches: [[{five}]]}}"
    outcome = make_plan(written(profile=str(tmp_path / "few.json"), batches=listed))
    assert outcome.left == (
        "interleaved 1F1B: 5 microbatches do not divide into 2 rounds",
        "4 stages on a rank: the model has 6 layers for 8 stages",
        "parameter-balanced 1F1B: the profile has no layer_parameters",
    )
    assert "Left out: interleaved 1F1B" in table(outcome)


def test_cuts_by_choice():
    batches = DrawnBatches(
        microbatches=4,
        items={"vision": DrawnItems(low=2, high=6, size=169), "text": DrawnItems(low=1, high=1, size=8192)},
    ).draw()
    rule = choose_cut(VLM_37B, batches, 2, PipelineOptions(segments="published"))
    assert (rule.segments, rule.most) == ({"vision": 1, "text": 1}, {"vision": 8, "text": 1})
    given = choose_cut(VLM_37B, batches, 2, PipelineOptions(segments={"vision": 2, "text": 1}))
    assert (given.segments, given.most, len(given.chunks)) == ({"vision": 2, "text": 1}, rule.most, 6)
    whole = choose_cut(VLM_37B, batches, 2, PipelineOptions(segments="published", parts={}))
    assert whole.most == {}
    found = choose_cut(VLM_37B, batches, 2, PipelineOptions(parts={"vision": 3}))
    assert found.most["vision"] == 3
    plan = plan_batch(VLM_37B, batches[0], rule, PipelineOptions(priorities=TreeSearch(evaluations=4), split="never"))
    assert plan.graph.split == frozenset()
    assert plan_batch(VLM_37B, batches[0], rule, PipelineOptions(priorities=MicrobatchOrder())) != plan


def test_recomputing_goes_below_one_microbatch():
    """With a cap of 40% of what one microbatch saves. No layer keeps its input here: hidden_bytes is 0."""
    batch = [{"vision": [169] * 8, "text": [8192]}] * 4
    options = PipelineOptions(segments={"vision": 1, "text": 1}, parts={}, cap=0.4 * 32 * (8192 + 8 * 169))
    cut = choose_cut(VLM_37B, [batch], 2, options)
    with pytest.raises(PlanError, match="raise the cap"):
        plan_batch(VLM_37B, batch, cut, options)
    plan = plan_batch(VLM_37B, batch, cut, replace(options, recompute=True))
    assert plan.recompute
    assert max(timeline(plan, VLM_37B).peak_bytes) <= options.cap


def test_drawn_batches_are_within_their_bounds():
    drawn = DrawnBatches(batches=3, microbatches=50, items={"vision": DrawnItems(low=2, high=5, size=7)}, seed=3)
    counts = {len(one["vision"]) for batch in drawn.draw() for one in batch}
    assert counts == {2, 3, 4, 5}
    assert drawn.draw() == drawn.draw()
    assert {size for batch in drawn.draw() for one in batch for size in one["vision"]} == {7}
    listed = ListedBatches(batches=(({"text": (1.0,)},),))
    assert listed.draw() == [({"text": (1.0,)},)]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"ranks": "0"}, "ranks"),
        ({"profile": "nowhere.json"}, "nowhere.json does not exist"),
        ({"options": "{cap: 0}"}, "options.cap"),
        ({"options": "{segments: best}"}, "options.segments"),
        ({"options": "{segments: {vision: 0, text: 1}}"}, "options.segments"),
        ({"options": "{parts: {vision: 0}}"}, "options.parts.vision"),
        ({"options": "{priorities: {type: luck}}"}, "options.priorities"),
        ({"options": "{priorities: {type: local, evaluations: 0}}"}, "options.priorities.*evaluations"),
        ({"options": "{split: maybe}"}, "options.split"),
        ({"batches": "{type: list, batches: []}"}, "batches.*batches"),
        ({"batches": "{type: list, batches: [[{text: [0]}]]}"}, "text"),
        (
            {"batches": "{type: drawn, microbatches: 2, items: {text: {low: 2, high: 1, size: 1}}}"},
            "low = 2 is more than",
        ),
    ],
)
def test_keys_that_cannot_be_are_named(written, keys, why):
    with pytest.raises(ConfigError, match=why):
        make_plan(written(**keys))


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"ranks": "65"}, "64 layers for 65 chunks"),
        ({"options": "{segments: {vision: 1}}"}, "text has 0 segments"),
        ({"options": "{segments: {vision: 1, text: 1, sound: 1}}"}, "no module sound"),
        ({"options": "{parts: {sound: 1}}"}, "no module sound"),
        ({"options": "{cap: 10}"}, r"rank \d needs \d+ bytes for microbatch \d alone, the cap is 10"),
        ({"batches": "{type: list, batches: [[{sound: [1], text: [1], vision: [1]}]]}"}, "no module sound"),
        ({"batches": "{type: list, batches: [[{text: [1], vision: [1]}, {vision: [1]}]]}"}, "and none of text"),
        ({"batches": "{type: list, batches: [[{text: [1], vision: [1]}, {}]]}"}, "microbatch 1 has no item"),
        ({"batches": "{type: list, batches: [[{text: [1]}]]}"}, "no sample batch has an item of vision"),
    ],
)
def test_what_allows_no_plan_is_one_error(written, keys, why):
    with pytest.raises(PlanError, match=why):
        make_plan(written(**keys))
