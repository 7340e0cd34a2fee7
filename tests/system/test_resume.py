"""Stopped, signalled or killed anywhere, a run that goes on gives the same bits as one that was never disturbed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from safetensors.torch import load_file

from stepstack.core import checkpoint as checkpoints
from tests.system import hooks
from tests.system.hooks import recorder
from tests.system.processes import (
    MINI,
    checkpoint,
    differences,
    ok,
    rollouts,
    rows,
    samples,
    train,
    train_ranks,
    trajectory,
)

KILLED = -signal.SIGKILL


def same(run, whole) -> None:
    assert [row["step"] for row in rows(run)] == [0, 1, 2, 3, 4]
    assert differences(trajectory(run, 4), trajectory(whole, 4)) == []
    assert rollouts(run) == rollouts(whole)


def test_the_reference_is_worth_comparing_with(whole):
    """Rewards vary, weights move, and other seeds give other runs; else all that follows would prove nothing."""
    steps = rows(whole)[1:]
    assert len({row["reward"] for row in steps}) > 1
    assert all(0 < row["reward"] < 1 and row["actor/grad_norm"] > 0 and row["critic/grad_norm"] > 0 for row in steps)
    base = load_file(whole / "base" / "model" / "model.safetensors")
    assert differences(base, load_file(whole / "model" / "model.safetensors"))
    assert len({row["random_torch"] for row in steps}) == len({row["random_python"] for row in steps}) == 4
    assert len(rollouts(whole)) == 4 * 32 + 3 * 6 + 2 * 8  # steps, evaluations on select, on test


def test_clean_stop(new_run, whole):
    run = new_run()
    stopped = ok(train(run, "--stop-after", "1", hooks=[recorder(run)]))
    assert "stopped after step 1 of 4" in stopped.err
    assert not (run / "evals" / "after").exists()
    resumed = ok(train(run, hooks=[recorder(run)]))
    assert "resumed from" in resumed.err
    same(run, whole)


def test_sigterm(new_run, whole):
    """In the middle of a step: the step is finished, saved, and the exit is clean."""
    run = new_run()
    stopped = ok(train(run, hooks=[recorder(run), (hooks.signal_in_step, "actor", 2, signal.SIGTERM)]))
    assert "stopped after step 3 of 4" in stopped.err
    assert [row["step"] for row in rows(run)] == [0, 1, 2, 3]
    ok(train(run, hooks=[recorder(run)]))
    same(run, whole)


def test_sigterm_to_launch(new_run, whole):
    """The line that `make train` types: the signal goes to launch, the training process below it saves and ends."""
    run = new_run()
    words = [sys.executable, "-m", "stepstack", "launch", MINI, f"name={run.name}", f"dir={run.parent}"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        limit = time.monotonic() + 120
        while not (run / "metrics.jsonl").is_file() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "stopped after step" in err
    assert len(rows(run)) < 5
    ok(train(run, hooks=[recorder(run)]))
    plain = [{k: v for k, v in row.items() if not k.startswith("random_")} for row in rows(whole)]
    assert [{k: v for k, v in row.items() if not k.startswith("random_")} for row in rows(run)] == plain
    roles = checkpoint(whole, 4)["state"]["trainables"]
    assert len(roles) == 2
    assert differences(*[{role: checkpoint(r, 4)[role] for role in roles} for r in (run, whole)]) == []
    assert differences(samples(run, "after"), samples(whole, "after")) == []


@pytest.mark.parametrize(("role", "step"), [("critic", 0), ("actor", 1), ("actor", 3)])
def test_kill_in_the_middle_of_a_step(new_run, whole, role, step):
    """Before the first checkpoint, and one step after one: steps done since then are done again, to the same bits."""
    run = new_run()
    killed = train(run, hooks=[recorder(run), (hooks.signal_in_step, role, step, signal.SIGKILL)])
    assert killed.code == KILLED
    ok(train(run, hooks=[recorder(run)]))
    same(run, whole)


@pytest.mark.parametrize("moment", ["files", "manifest", "described", "renamed"])
def test_kill_in_the_middle_of_a_save(new_run, whole, moment):
    run = new_run()
    assert train(run, hooks=[recorder(run), (hooks.kill_in_save, 2, moment)]).code == KILLED
    assert bool(list((run / "checkpoints").glob(".partial-*"))) == (moment != "renamed")
    assert (run / "checkpoints" / "step-00000002").exists() == (moment == "renamed")
    ok(train(run, hooks=[recorder(run)]))
    assert not list((run / "checkpoints").glob(".partial-*"))
    same(run, whole)


def test_kill_in_the_middle_of_a_later_save_keeps_the_earlier_one(new_run, whole):
    run = new_run()
    assert train(run, hooks=[recorder(run), (hooks.kill_in_save, 4, "files")]).code == KILLED
    resumed = ok(train(run, hooks=[recorder(run)]))
    assert "resumed from" in resumed.err
    assert "step-00000002" in resumed.err
    same(run, whole)


def test_what_a_killed_save_of_more_processes_left_is_not_in_the_next_checkpoint(new_run):
    """Two processes, killed between manifest and rename; one process saves the same step anew."""
    run = new_run()
    killed = train_ranks(run, 2, hooks=[(hooks.kill_in_save, 2, "described")])
    assert killed[0].code == KILLED
    assert (run / "checkpoints" / ".partial-00000002" / "random-00001.json").is_file()
    ok(train(run, "--stop-after", "2"))
    folder = run / "checkpoints" / "step-00000002"
    assert checkpoints.problem(folder) is None
    assert not (folder / "random-00001.json").exists()
    assert not list(folder.rglob("__1_*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_within_the_sft_stage(tmp_path, whole, number):
    run = tmp_path / "q"
    often = (hooks.save_base_often, 30)
    ended = train(run, hooks=[recorder(run), often, (hooks.signal_in_step, "policy", 70, number)])
    assert ended.code == (0 if number == signal.SIGTERM else KILLED)
    assert not (run / "base" / "model").exists()
    resumed = ok(train(run, hooks=[recorder(run), often]))
    at = 71 if number == signal.SIGTERM else 60
    assert f"step-{at:08d}" in resumed.err
    assert rows(run / "base") == rows(whole / "base")
    base = [load_file(r / "base" / "model" / "model.safetensors") for r in (run, whole)]
    assert differences(*base) == []
    same(run, whole)


def test_at_an_epoch_boundary(new_run):
    """Nine problems, four a step: an epoch is two steps, so both stops stand at one or inside one."""
    runs = new_run("undisturbed"), new_run("stopped")
    for run, stops in zip(runs, ((), (2, 5)), strict=True):
        for stop in stops:
            ok(train(run, "steps=6", "data.train=9", "--stop-after", str(stop), hooks=[recorder(run)]))
        ok(train(run, "steps=6", "data.train=9", hooks=[recorder(run)]))
    lines = [json.loads(line)["key"] for line in recorder(runs[0])[1].read_text().splitlines()]
    trained = [key.split() for key in lines if int(key.split()[-1]) > 0]  # evaluations have one sample a problem
    two_epochs = Counter(text for version, *_, text, sample in trained if int(version) < 4 and sample == "1")
    assert sum(two_epochs.values()) == 16
    assert set(two_epochs.values()) <= {1, 2}
    assert differences(*[trajectory(run, 6) for run in runs]) == []
    assert rollouts(runs[0]) == rollouts(runs[1])
