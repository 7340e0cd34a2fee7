"""Checkpoints that are written while training goes on hold the same, and count only when they are whole."""

from __future__ import annotations

import signal

import pytest

from stepstack.core import checkpoint as checkpoints
from tests.system import fsdp, hooks
from tests.system.hooks import recorder
from tests.system.processes import differences, ok, rows, train, train_ranks, trajectory

BACKGROUND = ("save={every: 1, keep: 2, asynchronous: true}",)
KILLED = -signal.SIGKILL


def steps(run) -> list[int]:
    return [step for step, _ in checkpoints.newest_first(run / "checkpoints")]


@pytest.mark.parametrize("moment", ["files", "described"])
def test_killed_while_one_is_written_the_one_before_counts(new_run, whole, moment):
    """The one of step 3 is being written while step 4 trains."""
    run = new_run()
    assert train(run, *BACKGROUND, hooks=[recorder(run), (hooks.kill_in_save, 3, moment)]).code == KILLED
    assert steps(run) == [2, 1]
    ended = ok(train(run, *BACKGROUND, hooks=[recorder(run)]))
    assert "step-00000002" in ended.err.partition("resumed from")[2]
    assert steps(run) == [4, 3]
    assert differences(trajectory(run, 4), trajectory(whole, 4)) == []


def test_a_stop_and_the_end_wait_for_a_slow_disk(new_run, whole):
    """Steps take less time than a checkpoint, so that all but the first wait for the one before."""
    run = new_run()
    slow = (hooks.slow_disk, 1.0)
    term = (hooks.signal_in_step, "actor", 1, signal.SIGTERM)
    stopped = ok(train(run, *BACKGROUND, hooks=[recorder(run), slow, term]))
    assert "stopped after step 2 of 4" in stopped.err
    assert steps(run) == [2, 1]
    ok(train(run, *BACKGROUND, hooks=[recorder(run), slow]))
    assert steps(run) == [4, 3]
    assert [checkpoints.problem(run / "checkpoints" / f"step-{step:08d}") for step in (3, 4)] == [None, None]
    assert differences(trajectory(run, 4), trajectory(whole, 4)) == []


@pytest.mark.parametrize("start", [train_ranks, fsdp.train], ids=["ddp", "fsdp2"])
def test_two_processes(new_run, start):
    """Killed and resumed, against saving while the training waits."""
    plain, run = new_run("plain"), new_run("q")
    for ended in start(plain, 2, "save.every=1", hooks=(recorder(plain),)):
        ok(ended)
    kill = (hooks.signal_in_step, "critic", 3, signal.SIGKILL)
    for ended in start(run, 2, *BACKGROUND, hooks=(recorder(run), (hooks.slow_disk, 0.5), kill)):
        assert ended.code == KILLED
    assert steps(run)
    for ended in start(run, 2, *BACKGROUND, hooks=(recorder(run),)):
        ok(ended)
    assert len(rows(run)) == 5
    assert steps(run) == [4, 3]
    assert differences(trajectory(run, 4), trajectory(plain, 4)) == []
