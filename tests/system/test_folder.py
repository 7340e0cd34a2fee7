"""A run's folder is written by one process, and a run may go on for longer than it was planned."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest

from tests.system import hooks
from tests.system.hooks import recorder
from tests.system.processes import differences, ok, rows, stepstack, train, train_ranks, trajectory


def test_a_second_run_in_the_same_folder_is_refused(new_run, whole):
    """The first is held in the middle of a step; one process and two are refused alike, and leave it undisturbed."""
    run = new_run()
    first = stepstack(run, hooks=[recorder(run), (hooks.signal_in_step, "actor", 2, signal.SIGSTOP)])
    pid = first.process.pid
    limit = time.monotonic() + 60
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < limit
        time.sleep(0.05)
    try:
        for ended in (train(run), *train_ranks(run, 2)):
            assert ended.code == 2
            assert f"stepstack train: {run} is in use by process {pid} on " in ended.err
            assert "Traceback" not in ended.err
    finally:
        while first.process.is_alive():  # it stops before each update of that step
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.05)
    ok(first.wait())
    assert differences(trajectory(run, 4), trajectory(whole, 4)) == []


def test_a_finished_run_goes_on_with_more_steps(new_run):
    """With a constant learning rate it ends where a run of six steps ends; what it evaluated at step 4 is gone."""
    six, run = new_run("six"), new_run("q")
    constant = ("advantage={type: grpo}", "actor.optim.schedule={kind: constant}")
    ok(train(six, *constant, "steps=6"))
    ok(train(run, *constant))
    ended = ok(train(run, *constant, "steps=6"))
    assert "changed since the run began: steps: 4 -> 6" in ended.err
    assert "actor: 8 -> 12 updates in all: its learning rate is constant and stays as it was" in ended.err
    assert differences(trajectory(run, 6), trajectory(six, 6)) == []
    record = json.loads((run / "config.json").read_text())
    assert record["config"]["steps"] == 6
    assert [entry["changed"] for entry in record["history"]] == [["steps: 4 -> 6"]]


def test_a_schedule_that_ends_later_is_said(new_run):
    run = new_run()
    linear = (
        "advantage={type: grpo}",
        "actor.optim={lr: 1e-3, schedule: {kind: linear, warmup: 0, final: 0.0}}",
        "actor_updates=1",
    )
    ok(train(run, *linear, "--stop-after", "2"))
    changes = ("steps=8", "eval_every=3", "save={every: 1, keep: 3}")
    ended = ok(train(run, *linear, *changes, "--stop-after", "4"))
    for line in ("steps: 4 -> 8", "eval_every: 2 -> 3", "save.every: 2 -> 1", "save.keep: 2 -> 3"):
        assert f"changed since the run began: {line}" in ended.err
    assert "actor: 4 -> 8 updates in all: the linear decay of its learning rate now ends at update 8" in ended.err
    assert "at update 2, where this run stands, the learning rate goes from 0.0005 to 0.00075" in ended.err
    rates = [row["actor/lr"] for row in rows(run)[1:]]
    assert rates == pytest.approx([1e-3, 7.5e-4, 7.5e-4, 6.25e-4])
    refused = train(run, *linear, *changes, "steps=3")
    assert refused.code == 2
    assert f"{run} stands at step 4, which is beyond steps=3: give it steps=4 or more" in refused.err
