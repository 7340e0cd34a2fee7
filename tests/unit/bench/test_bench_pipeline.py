"""The bench of pipelines: what is paced takes the simulated time, and its tables hold every promise."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from evals.bench import pipeline
from evals.tables import bench_pipeline
from stepstack.planning.pipeline.search import LocalSearch
from stepstack.planning.pipeline.timeline import timeline
from stepstack.report.formats import render
from stepstack.simulation.pipeline import published, study

OPTIONS = LocalSearch(evaluations=4)


def test_fewer_layers_cost_as_much_together():
    profile = published.profile("37b")
    small = pipeline.relayered(profile, 8, scale=2.0)
    for thick, thin in zip(small.modules, profile.modules, strict=True):
        assert thick.layers == 8
        assert 8 * thick.layer.at(3).backward == pytest.approx(2 * thin.layers * thin.layer.at(3).backward)


def test_paced_passes_take_the_seconds_of_the_model(monkeypatch):
    """On two processes; the faster of two rounds, since other work on this machine only makes them longer."""
    monkeypatch.setattr(pipeline, "MICROBATCHES", 2)
    monkeypatch.setattr(pipeline, "PICTURES", (1, 3))
    monkeypatch.setattr(pipeline, "LAYERS", 8)
    monkeypatch.setattr(pipeline, "SCALE", {2: 1.0})
    rows = pipeline.paced(2, 2, OPTIONS)
    assert [row["name"] for row in rows] == [*pipeline.MODES, pipeline.BESIDE]
    for row in rows:
        assert row["simulated"] * 0.999 <= min(row["seconds"]) <= row["simulated"] * 1.3
        assert row["passes"] % 2 == 0


def test_a_step_waits_for_the_plan_beside_it(tmp_path, monkeypatch):
    """One rank in this process: the search lasts longer than the step, and its time counts."""
    profile = pipeline.relayered(published.profile("37b"), 4)
    graph = study.ModelCut.of(profile, 1, {"text": 1, "vision": 1}, {}).graph(profile, [{"text": [8.0]}], False)
    plan = pipeline.search(graph, profile, OPTIONS)
    shape = {"hidden": 16, "intermediate": 32, "tower": 16, "layers": 4, "depth": 4}
    monkeypatch.setattr(pipeline.dist, "barrier", lambda: None)
    beside = {"slow": partial(time.sleep, 0.5)}
    task = pipeline.Task({"plain": plan, "slow": plan}, [0], 1, {}, shape, beside=beside)
    assert (
        pipeline._carry_out(0, "plain", task)["seconds"][0] < 0.5 <= pipeline._carry_out(0, "slow", task)["seconds"][0]
    )


def test_the_tables_hold_every_promise():
    profile = published.profile("37b")
    cut = study.ModelCut.of(profile, 4, pipeline.SEGMENTS, {"vision": 6})
    drift = {"8": study.drift(profile, cut, 2, OPTIONS)}
    row = {"ranks": 4, "simulated": 1.0, "seconds": [1.01], "overruns": 0, "late": 0.0, "passes": 8}
    paced = [row | {"name": name, "ranks": ranks} for ranks in (4, 2) for name in (*pipeline.MODES, pipeline.BESIDE)]
    result = {
        "rounds": 1,
        "simulated": {
            "drift": drift,
            "drift, cut by search": drift,
            "searched cut": {"segments": {"vision": 1}, "most": {}},
            "mixes": study.mixes(profile, cut, 2, OPTIONS),
            "memory": [{"share": 0.5, "way": "wait", "slower": 0.1, "fullest": 1.0}],
            "large": {"actions": 8, "gap": 0.02, "seconds": 1.5, "cpu": 1.4, "evaluations": 32},
            "ablation": {"base": 2.0, "+ partitioner": 1.0},
            "models": [],
        },
        "paced": paced,
        "real": {"one process": [2.0], "rows": [{"name": "static", "simulated": 1.0, "seconds": [1.5]}]},
    }
    text = render(bench_pipeline.tables_of(result), "md")
    for word in (
        "+15%",
        "+10%",
        "+8%",
        "5%",
        "2 s",
        "planning beside it",
        "at most 1.05",
        "real: one process",
        "22.27, +17.3%",
    ):
        assert word in text
    assert "VOID" not in text
    paced[0]["late"] = 9.0
    assert "VOID" in render(bench_pipeline.tables_of(result), "md")


def test_a_microbatch_has_its_pictures_and_learns_an_answer():
    torch.manual_seed(0)
    model = pipeline.policy({"hidden": 16, "intermediate": 32, "tower": 16, "layers": 2, "depth": 2})
    micros = pipeline.batch_of(model, [0, 3], pipeline.SIDE)
    assert [len(micro.pictures[0]) for micro in micros] == [0, 3]
    assert all(micro.count == 12 for micro in micros)


def test_the_best_static_pipeline_is_cut_for_the_mean_and_the_plans_for_the_batch():
    profile = pipeline.relayered(published.profile("37b"), 16)
    batch = [{"text": [8192.0], "vision": [4.0] * count} for count in (6, 12, 9, 7)]
    still, planned, apart = pipeline.planned(profile, batch, 4, LocalSearch(evaluations=16))
    seconds = [timeline(plan, profile).makespan for plan in (still, planned, apart)]
    assert seconds == sorted(seconds, reverse=True)
