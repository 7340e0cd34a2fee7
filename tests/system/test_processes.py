"""Two true processes over gloo give the trajectory of one: same rollouts, rewards and metrics, weights to rounding."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stepstack.core import checkpoint as checkpoints
from tests.system import hooks
from tests.system.hooks import recorder
from tests.system.processes import (
    GAE,
    MINI,
    SMOOTH,
    differences,
    distance,
    numbers,
    ok,
    rows,
    sampled,
    samples,
    train,
    train_ranks,
)

APART = 5e-7  # of weights below 1: a few roundings in float32
GRPO = (
    "advantage={type: grpo}",
    "policy_loss.aggregate=seq-mean-token-mean",
    "rollout.sampling.n=4",
    "actor_updates=5",
)
REMAX = (
    "advantage={type: remax}",
    "rollout.sampling.n=4",
    "actor_updates=2",
    "actor.optim.lr=6e-4",
    "policy_loss.old_from_sampler=1e-3",
    "tool={type: calculator, open: '\\boxed{', close: '}', result: '({result})', calls: 2}",
)
DYNAMIC = ("advantage={type: grpo}", "rollout.sampling.n=2", "rollout.dynamic_sampling={max_batches: 4}")
UNEVEN = ("rollout.prompts=3", "rollout.sampling.n=2", "critic_updates=6", "actor_updates=4")


@pytest.mark.rounding
@pytest.mark.parametrize(
    "words",
    [GAE, GRPO, DYNAMIC, REMAX, UNEVEN, (*GAE, "layout.pack=true"), (*GAE, "layout.share_prompts=true")],
    ids=["gae", "grpo", "dynamic", "remax", "uneven", "pack", "shared"],
)
def test_two_processes_give_the_trajectory_of_one(new_run, words, record_property):
    """``dynamic``: further prompts, by the scores of all processes. ``remax``: greedy responses, old log-probabilities
    of the sampler, and a tool that responses call. ``uneven``: 3 prompts on 2 processes, and mini-batches of one row,
    where a process has nothing of its own."""
    one, two = new_run("one"), new_run("two")
    ok(train(one, *SMOOTH, *words, hooks=[recorder(one)]))
    for ended in train_ranks(two, 2, *SMOOTH, *words, hooks=[recorder(two)]):
        ok(ended)
    assert sampled(two) == sampled(one)
    assert len(sampled(one)) > 40
    if words is DYNAMIC:
        assert max(row["prompts"] for row in numbers(one)[1:]) > 4
    if words is REMAX:
        assert {row["actor/old_from_sampler"] for row in numbers(one)[1:]} == {1.0}
        assert max(row["tool/calls"] for row in numbers(one)[1:] if "tool/calls" in row) > 0.1
    if words is GRPO:  # some groups, and not all of them, are without signal and leave the update
        assert 0 < min(row["trained_fraction"] for row in numbers(one)[1:]) < 1
    for a, b in zip(numbers(one), numbers(two), strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-5)
    assert differences(samples(two, "before"), samples(one, "before")) == []
    assert differences(samples(two, "after"), samples(one, "after")) == []
    apart = distance(one, two, 4)
    record_property("largest_weight_difference", apart)
    print(f"largest difference of a weight after 4 steps: {apart:.2e}")
    assert apart < APART
    assert distance(one, one_step_earlier(one), 4) > 500 * APART


def one_step_earlier(run: Path) -> Path:
    """A view of the run whose checkpoint of step 4 is that of step 2: the scale that differences are compared with."""
    view = run.parent / f"{run.name}-earlier" / "checkpoints"
    view.mkdir(parents=True)
    (view / "step-00000004").symlink_to(run / "checkpoints" / "step-00000002")
    return view.parent


@pytest.mark.rounding
def test_base_and_all_by_launch(whole, tmp_path):
    """What `make train` types, two processes, from the SFT on: the stage must leave the process group to the rest."""
    run = tmp_path / "q"
    words = ["launch.file=cpu-ddp", "launch.processes_per_node=2", "trackers=[tensorboard]", "launch.port=29533"]
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path / "shown"}\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "stepstack", "launch", MINI, f"name={run.name}", f"dir={run.parent}", *words]
    done = subprocess.run(
        [*command, "--open"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"BROWSER": f"{browser} %s"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shown").read_text() == (run / "report.html").as_uri()
    assert done.stdout.count("held-out problems") == 1
    assert done.stderr.count("q PPO 4/4") == 1
    losses = [[row["loss"] for row in rows(r / "base")] for r in (whole, run)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert [row["step"] for row in rows(run)] == [0, 1, 2, 3, 4]
    assert all(math.isfinite(value) for row in rows(run) for value in row.values())


def test_a_checkpoint_waits_for_the_slowest_process(new_run):
    """Rank 1 writes its random state late; the manifest describes it all the same, and nothing is torn."""
    run = new_run()
    for ended in train_ranks(run, 2, "steps=2", hooks=[(hooks.slow_rank, 1.0)]):
        ok(ended)
    folder = run / "checkpoints" / "step-00000002"
    assert checkpoints.problem(folder) is None
    assert "random-00001.json" in json.loads((folder / checkpoints.MANIFEST).read_text())["files"]


@pytest.mark.rounding
def test_a_run_may_go_on_with_another_number_of_processes(new_run):
    one, mixed = new_run("one"), new_run("mixed")
    ok(train(one, *SMOOTH, *GAE))
    for ended in train_ranks(mixed, 2, *SMOOTH, *GAE, "--stop-after", "2"):
        ok(ended)
    ok(train(mixed, *SMOOTH, *GAE))
    assert distance(one, mixed, 4) < APART
    for a, b in zip(numbers(one), numbers(mixed), strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-5)


def test_another_number_of_processes_than_the_config_says(new_run):
    """`stepstack train` in one process with a config of two: one error that says how to start it; nothing written."""
    run = new_run()
    refused = train(run, "launch.file=cpu-ddp", "launch.processes_per_node=2")
    assert refused.code == 2
    assert refused.err.startswith("stepstack train: the config asks for 2 processes")
    assert "1 were started: use `stepstack launch" in refused.err
    assert "Traceback" not in refused.err
    assert sorted(p.name for p in run.iterdir()) == ["base"]


def test_processes_wait_for_each_other_as_long_as_the_config_says(new_run):
    for ended in train_ranks(new_run(), 2, "steps=1", "launch.timeout=7", hooks=[(hooks.show_timeout,)]):
        assert "waits 0:07:00" in ok(ended).out


def test_launch_file_that_cannot_start_that_many(new_run):
    run = new_run()
    command = [sys.executable, "-m", "stepstack", "launch", MINI, f"name={run.name}", f"dir={run.parent}"]
    done = subprocess.run(
        [*command, "launch.processes_per_node=2"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "launch.file=cpu starts one process" in done.stderr
    assert done.stdout == ""


def test_the_config_of_these_tests_is_still_orz_tiny():
    """It changes sizes, and nothing of the algorithm."""
    changed = yaml.safe_load(Path(MINI).read_text())
    assert not changed.keys() & {"advantage", "policy_loss", "value_loss", "kl", "reward", "actor", "critic"}
