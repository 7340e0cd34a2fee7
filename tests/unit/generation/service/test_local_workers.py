"""Worker processes that a trainer starts: started anew, given up, pinned."""

from __future__ import annotations

import os
import time

import pytest

from stepstack.generation.service.local import LocalWorkers
from stepstack.generation.types import EngineError
from tests.system.processes import MINI

NOBODY = "tcp://127.0.0.1:9"


@pytest.fixture
def token(tmp_path):
    (tmp_path / "token").write_text("secret")
    return tmp_path / "token"


def wait_for(there) -> None:
    limit = time.monotonic() + 60
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_those_that_die_at_once_are_given_up_and_their_log_says_why(tmp_path, token):
    workers = LocalWorkers(1, ["no-such-config"], tmp_path / "logs", restarts=1, pin=False)
    workers.start(NOBODY, token)
    wait_for(lambda: workers.replace_dead(0) == ["local-0-0"])
    [second] = workers.running.values()
    second.wait()
    with pytest.raises(EngineError, match=r"died 2 times without a group in between, the last one with 2: .*0\.log"):
        workers.replace_dead(0)
    assert "no-such-config" in (tmp_path / "logs" / "0.log").read_text()


def test_a_group_in_between_begins_the_count_anew(tmp_path, token):
    workers = LocalWorkers(1, ["no-such-config"], tmp_path / "logs", restarts=1, pin=False)
    workers.start(NOBODY, token)
    died = 0
    while died < 3:
        died += len(workers.replace_dead(died))
        time.sleep(0.05)
    workers.stop()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="pinning takes two cores")
def test_pinned_workers_have_cores_that_the_trainer_leaves_alone(tmp_path, token):
    cores = os.sched_getaffinity(0)
    words = [MINI, "stream.staleness=0", "stream.patience=60", f"dir={tmp_path}"]
    workers = LocalWorkers(1, words, tmp_path / "logs", restarts=0, pin=True)
    try:
        workers.start(NOBODY, token)
        [process] = workers.running.values()
        wait_for(lambda: os.sched_getaffinity(process.pid) == {max(cores)})
        assert os.sched_getaffinity(0) == cores - {max(cores)}
        process.kill()
    finally:
        os.sched_setaffinity(0, cores)
    workers.stop()


def test_more_workers_than_cores_cannot_be_pinned(tmp_path, token):
    workers = LocalWorkers(len(os.sched_getaffinity(0)), [MINI], tmp_path / "logs", restarts=0, pin=True)
    with pytest.raises(EngineError, match="set it to false"):
        workers.start(NOBODY, token)
