"""A disk that is full when a checkpoint is written: one error on every process, and nothing is lost."""

from __future__ import annotations

import pytest

from stepstack.core import checkpoint
from tests.system import fsdp, hooks
from tests.system.processes import ok, train, train_ranks


def check(ended, run) -> None:
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert ".partial-00000004 could not be written (" in ended.err or "checkpoints could not be written (" in ended.err
    assert "make room there; the same command goes on from the checkpoint before" in ended.err
    assert [step for step, _ in checkpoint.newest_first(run / "checkpoints")] == [2]


@pytest.mark.parametrize("words", [(), ("save.asynchronous=true",)], ids=["now", "asynchronous"])
def test_one_process(new_run, words):
    run = new_run()
    check(train(run, *words, hooks=[(hooks.full_disk, 4)]), run)
    resumed = ok(train(run, *words))
    assert "step-00000002" in resumed.err


@pytest.mark.parametrize("start", [train_ranks, fsdp.train], ids=["whole", "sharded"])
def test_two_processes(new_run, start):
    run = new_run()
    for ended in start(run, 2, hooks=((hooks.full_disk, 4),)):
        check(ended, run)
