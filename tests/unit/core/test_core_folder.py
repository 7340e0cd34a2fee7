"""A run's folder belongs to one configuration, and to one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stepstack.config import ConfigError, Launch, Save
from stepstack.core.folder import claim, lock
from tests.tools import config

HOLD = """
import os, sys, time
from pathlib import Path
from stepstack.core.folder import lock
lock(Path(sys.argv[1]))
if not sys.argv[2:] or os.fork() == 0:  # the child lives on when its parent is killed
    print("held", flush=True)
time.sleep(10)
"""


def holder(folder: Path, *words: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def record(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_another_process_is_refused_by_name_until_the_first_is_killed(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(ConfigError, match=rf"is in use by process {process.pid} on \S+: wait .* \(name=...\)$"):
            lock(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        lock(tmp_path)
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_child_of_a_killed_process_does_not_keep_the_lock(tmp_path):
    process = holder(tmp_path, "fork")
    try:
        process.kill()
        process.wait()
        lock(tmp_path)
    finally:
        process.stdout.close()  # type: ignore[union-attr]


def test_the_same_process_may_take_it_again_also_of_a_folder_made_anew(tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        folder.mkdir()
        lock(folder)
        lock(folder)
        shutil.rmtree(folder)


def test_a_stage_takes_no_lock(tmp_path):
    with holder(tmp_path) as process:
        assert claim(tmp_path, config(tmp_path), inner=True) == []
        process.kill()


def test_changes_are_kept_in_a_history(tmp_path):
    assert claim(tmp_path, config(tmp_path), inner=False) == []
    assert record(tmp_path)["history"] == []
    longer = config(tmp_path, steps=9, save=Save(every=7), launch=Launch(port=1))
    assert claim(tmp_path, longer, inner=False) == ["save.every: 50 -> 7", "steps: 2 -> 9"]
    assert claim(tmp_path, longer, inner=False) == []
    assert claim(tmp_path, config(tmp_path, steps=8), inner=False) == ["save.every: 7 -> 50", "steps: 9 -> 8"]
    first, second = record(tmp_path)["history"]
    assert first["changed"] == ["launch.port: 29500 -> 1", "save.every: 50 -> 7", "steps: 2 -> 9"]
    assert second["changed"] == ["launch.port: 1 -> 29500", "save.every: 7 -> 50", "steps: 9 -> 8"]
    assert first["time"] <= second["time"]
    assert record(tmp_path)["config"]["steps"] == 8


def test_a_folder_of_another_configuration_is_not_even_locked(tmp_path):
    claim(tmp_path, config(tmp_path), inner=True)
    with pytest.raises(ConfigError, match=r"config.json belongs to another configuration.*\n  seed: 42 -> 1\n"):
        claim(tmp_path, config(tmp_path, seed=1), inner=False)
    assert not (tmp_path / ".lock").exists()
