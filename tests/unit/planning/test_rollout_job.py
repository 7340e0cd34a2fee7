"""`stepstack plan rollout`: the example files, lengths of a run, and one clear error for every file that cannot be."""

from __future__ import annotations

import json

import pytest

from stepstack import config
from stepstack.cli import main as cli
from stepstack.config import CONFIGS
from stepstack.planning.rollout.job import RolloutJob, make_plan, table
from stepstack.planning.rollout.lengths import run_lengths
from stepstack.report import jsonl

SINGLE = CONFIGS / "plans" / "rollout-streamrl.yaml"
CROSS = CONFIGS / "plans" / "rollout-streamrl-cross.yaml"


def plan(capsys, *words):
    assert cli.main(["plan", "rollout", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_example_shares_32_devices_out(capsys):
    found = plan(capsys, SINGLE)
    shares = found["allocation"]
    assert shares["generation"] + shares["training"] == 32
    assert found["seconds"] == max(shares["generation_seconds"], shares["training_seconds"])
    assert found["throughput"] == pytest.approx(1024 / found["seconds"])
    assert found["price"] == pytest.approx(32 / 8 * 2.85)
    assert found["per_price"] == pytest.approx(found["throughput"] / found["price"])
    split = found["split"]
    assert split["long_instances"] + split["regular_instances"] == shares["generation"]
    assert split["long_prompts"] == 205


def test_two_datacentres_free_devices_of_the_faster_side(capsys):
    found = plan(capsys, CROSS)
    shares = found["allocation"]
    assert shares["generation"] == 32
    assert shares["training"] < 16
    assert found["price"] == pytest.approx(32 / 8 * 1.0 + shares["training"] / 8 * 2.85)
    assert found["per_price"] > plan(capsys, SINGLE)["per_price"]


def test_growth_adds_units_while_lengths_grow(capsys):
    growth = "growth={iterations: 30, factor: 3.0, most: 64}"
    found = plan(capsys, SINGLE, "unit=8", "generation.cap=16", growth)
    devices = [one["devices"] for one in found["growth"]]
    assert len(devices) == 30
    assert devices == sorted(devices)
    assert devices[-1] > found["allocation"]["generation"]
    assert cli.main(["plan", "rollout", str(SINGLE), "unit=8", "generation.cap=16", growth]) == 0
    assert "| after iteration | delta | delta' | devices of generation |" in capsys.readouterr().out


def test_figure_10s_devices_follow_from_its_points(capsys):
    """Whole machines on the profile of the 32B model, interpolated."""
    generation = "generation={type: step, devices: [32, 40], seconds: [1.0, 0.8]}"
    training = "training={type: step, devices: [24, 32], seconds: [0.73, 0.73]}"
    found = plan(capsys, SINGLE, "machines.devices=64", "unit=8", generation, training)
    assert (found["allocation"]["generation"], found["allocation"]["training"]) == (40, 24)
    assert found["split"] is None


def test_the_table_says_that_nothing_was_measured():
    job = config.read(RolloutJob, SINGLE)
    text = table(job, make_plan(job))
    assert "nothing was measured here" in text
    assert "| long rows, by length | 205 on" in text


# -- lengths of a run --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run's folder with evaluations of two tasks afterwards, and none before."""
    folder = tmp_path / "trial"
    for task, tokens in (("test-avg1-aa", [3, 5, 0]), ("select-avg1-bb", [8])):
        rows = [{"tokens": count, "finish": "stop"} for count in tokens]
        jsonl.write_rows_atomic(folder / "evals" / "after" / task / "samples.jsonl", rows)
    return folder


def test_lengths_of_a_run_are_those_of_its_evaluations(run, capsys):
    assert sorted(run_lengths(str(run))) == [3, 5, 8]
    words = ["lengths.type=run", f"lengths.run={run}", "rows=3"]
    assert plan(capsys, SINGLE, *words)["tokens"] == 16


def test_requests_that_failed_have_no_length(run):
    jsonl.append(run / "evals" / "after" / "test-avg1-aa" / "samples.jsonl", {"tokens": 9, "finish": "error"})
    assert sorted(run_lengths(str(run))) == [3, 5, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "nowhere/trial"}, "lengths.run = 'nowhere/trial': nowhere/trial does not exist"),
        ({"run": "no-such-run"}, "runs/no-such-run does not exist: give the name of a run, or its folder"),
        ({"when": "before"}, "holds no responses in evals/before: evaluate the run (stepstack eval), or name one that"),
    ],
)
def test_a_run_without_responses_is_one_error(run, capsys, change, message):
    words = ["lengths.type=run", *(f"lengths.{key}={value}" for key, value in ({"run": run} | change).items())]
    assert cli.main(["plan", "rollout", str(SINGLE), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_row_without_tokens_is_named(run, capsys):
    file = run / "evals" / "after" / "test-avg1-aa" / "samples.jsonl"
    jsonl.append(file, {"tokens": None, "finish": "stop"})
    assert cli.main(["plan", "rollout", str(SINGLE), "lengths.type=run", f"lengths.run={run}"]) == 2
    assert f"{file}:4: tokens = None: must be a whole number" in capsys.readouterr().err


# -- files that cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        (["lengths={type: list, tokens: []}"], "lengths", "tokens is empty: give a length or more"),
        (["lengths={type: list, tokens: [0]}"], "lengths.tokens.0", "greater than 0"),
        (["lengths={type: histogram, upto: [], counts: []}"], "lengths", "no bin holds a response"),
        (["lengths={type: histogram, upto: [9], counts: [0]}"], "lengths", "no bin holds a response"),
        (["lengths={type: poisson}"], "lengths", "poisson"),
        (["machines.devices=1"], "machines.devices", "greater than or equal to 2"),
        (["machines.devices=8", "unit=8"], "machines.devices = 8", "must hold two units of unit = 8"),
        (["machines.device=A100"], "machines.device = 'A100'", "has no price: name one of H20, H800"),
        (["generation.batch=[]"], "generation", "batch is empty: give a measured point or more"),
        (["generation.milliseconds=[8, 7, 6, 5, 4, 3, 2, 1, 1, 1]"], "milliseconds", "a larger batch cannot be faster"),
        (["generation.cap=0"], "generation.cap", "greater than 0"),
        (["generation.instance_devices=2"], "generation.instance_devices", "an instance would be cut"),
        (["samples=3"], "samples = 3", "rows = 1024 is no multiple"),
        (["training.seconds=[0]"], "training.seconds.0", "greater than 0"),
        (["training.devices=[1, 2]"], "devices has 2 points", "give them in pairs"),
        (["dispatch={type: lifo}"], "dispatch", "lifo"),
        (["dispatch={type: length, share: 1.0}"], "dispatch.share", "less than 1"),
        (["long_share=0"], "long_share", "greater than 0"),
        (["weights_seconds=-1"], "weights_seconds", "greater than or equal to 0"),
        (["simulation.pipelines=[]"], "simulation.pipelines", "at least 1 item"),
        (["prices={H800: 0}"], "prices.H800", "greater than 0"),
        (["row=5"], "row", "did you mean"),
        (
            ["growth={iterations: 2, factor: 2.0, most: 40}", "training={type: step, devices: [1], seconds: [9]}"],
            "growth",
            "or leave growth out",
        ),
    ],
)
def test_a_file_that_cannot_be_planned_is_one_error(capsys, changes, key, message):
    assert cli.main(["plan", "rollout", str(SINGLE), *changes]) == 2
    error = capsys.readouterr().err
    assert key in error
    assert message in error
    assert error.count("\n") == 1, error
    assert "rollout-streamrl.yaml" in error or "command line" in error


def test_a_pool_smaller_than_a_unit_is_one_error(capsys):
    assert cli.main(["plan", "rollout", str(CROSS), "unit=20"]) == 2
    assert "machines.training.devices = 16 is less than unit = 20" in capsys.readouterr().err
