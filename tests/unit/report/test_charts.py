"""Curves as data: which metrics are drawn together, and what is kept of very many points."""

from __future__ import annotations

import math

import pytest

from stepstack.report import charts, glossary
from stepstack.report.charts import MAX_POINTS, StageRows


def test_the_peaks_of_many_points_stay():
    values = [math.sin(i / 50) for i in range(10_000)]
    values[1234], values[8765] = 9.0, -9.0
    kept = charts.thin(list(enumerate(values)))
    assert len(kept) <= MAX_POINTS
    assert kept == sorted(kept)
    assert {(0, values[0]), (9999, values[9999]), (1234, 9.0), (8765, -9.0)} <= set(kept)
    assert charts.thin(kept) == kept


def test_a_chart_joins_the_stages_that_have_its_metrics():
    sft = StageRows("SFT", [{"step": 1, "policy/entropy": 2.0, "time/step": 3.0}, {"step": 2, "time/step": 4.0}])
    ppo = StageRows("PPO", [{"step": 0}, {"step": 1, "actor/entropy": 0.5, "reward": 1.0, "new/one": 3.0}])
    drawn, left = charts.charts([sft, ppo])
    by_title = {chart.text.title: chart.lines for chart in drawn}
    assert [(line["label"], line["stage"], line["at"]) for line in by_title["Entropy"]] == [
        ("actor/entropy", 1, [1]),
        ("policy/entropy", 0, [0]),
    ]
    assert set(by_title) == {"Entropy", "Reward"}
    assert [chart.text.title for chart in left] == ["new/one"]
    assert charts.axes([sft])[0] == {"name": "SFT", "step": [1, 2], "time": [3.0, 7.0]}


def test_bands_are_drawn_at_the_same_rows_and_keep_their_mean():
    count = 3 * MAX_POINTS
    rows = [{"step": i, "time/a": float(i % 3), **({"time/b": 1.0} if i % 2 else {})} for i in range(count)]
    [chart] = [one for one in charts.charts([StageRows("x", rows)])[0] if one.text.stacked]
    a, b = chart.lines
    assert (a["label"], b["label"]) == ("time/a", "time/b")
    assert a["at"] == b["at"]
    assert len(a["y"]) == MAX_POINTS
    assert sum(a["y"]) / len(a["y"]) == pytest.approx(1.0)
    assert sum(b["y"]) / len(b["y"]) == pytest.approx(0.5, rel=0.01)
    assert chart.thinned_to == MAX_POINTS


def test_runs_are_compared_by_the_first_metric_that_each_has():
    one = StageRows("PPO", [{"step": 1, "actor/entropy": 1.0}])
    two = StageRows("SFT", [{"step": 1, "policy/entropy": 2.0, "loss": 3.0}])
    found = charts.compared({"a": [one], "none": [], "b": [two]})
    lines = {chart.text.title: [(line["label"], line["stage"], line["y"]) for line in chart.lines] for chart in found}
    assert lines == {"Entropy": [("a", 0, [1.0]), ("b", 1, [2.0])], "Loss": [("b", 1, [3.0])]}


def test_a_metric_stands_in_one_chart_and_an_unknown_one_is_a_gap():
    assert glossary.gaps(["step", "reward", "reward/iou", "tokens", "actor/surprise"]) == ["actor/surprise"]
    groups = glossary.grouped(["loss", "eval/loss", "dsv/loss/00", "critic/loss"])
    assert {text.title: names for text, names in groups} == {
        "Loss": ["loss", "eval/loss"],
        "Losses of actor and critic": ["critic/loss"],
        "Predictors of sparse attention": ["dsv/loss/00"],
    }
    titles = [chart.title for chart in glossary.CHARTS]
    assert len(set(titles)) == len(titles)
    for chart in glossary.CHARTS:
        assert chart.expect.endswith(".")
        assert chart.bad_sign.endswith(".")
