"""The report of a run that goes on: how often it is written, what it may not change, and what its status says."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from stepstack.core import folder as folders
from stepstack.core import live_report
from stepstack.core.live_report import LiveReport, read_status
from stepstack.report import jsonl


class Clock:
    """Clock that stands still but for what is added to it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(live_report.time, "monotonic", lambda: self.now)


def report(folder, write):
    return LiveReport(folder, write, "a model learns", {"base": "SFT", "": "PPO"}, "stepstack launch x")


def test_pages_take_a_hundredth_of_the_time_and_are_no_more_often_than_the_bound(tmp_path, monkeypatch):
    clock, pages, cost = Clock(monkeypatch), [], 0.1

    def write(folder):
        pages.append(clock.now)
        clock.now += cost
        return folder / "report.html"

    live = report(tmp_path, write)
    for step in range(1, 1001):
        clock.now += 1.0
        live.step("PPO", step, 1000)
    assert len(pages) == pytest.approx(1000 / live_report.MIN_SECONDS, abs=3)
    pages.clear()
    cost = 5.0  # now a page is slow
    for step in range(1, 2001):
        clock.now += 1.0
        live.step("PPO", step, 2000)
    assert 3 <= len(pages) <= 5
    assert jsonl.read_json(tmp_path / "status.json")["stage"] == "PPO"


def test_random_numbers_are_those_of_a_run_without_a_page(tmp_path):
    def draw():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    def write(folder):
        draw()
        torch.manual_seed(7)
        raise OSError("the disk is full")  # the numbers are the same also where no page came of it

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    live = report(tmp_path, write)
    first = draw()
    live.step("PPO", 1, 2)
    second = draw()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    assert [first, second] == [draw(), draw()]


def test_a_page_that_cannot_be_written_stops_no_training_but_is_an_error_at_the_end(tmp_path, capsys):
    def write(folder):
        raise KeyError("no such metric")

    live = report(tmp_path, write)
    live.step("PPO", 1, 3)
    live.step("PPO", 2, 3)
    assert capsys.readouterr().err.count("no such metric") == 1
    with pytest.raises(KeyError):
        live.end("finished")


def test_the_page_of_a_run_that_failed_does_not_hide_why(tmp_path, capsys):
    def write(folder):
        raise OSError(28, "No space left on device")

    report(tmp_path, write).failed("ConfigError: the disk is full")
    assert "could not be written" in capsys.readouterr().err
    assert read_status(tmp_path)["why"] == "ConfigError: the disk is full"


def test_stages_have_their_names_and_the_first_end_counts(tmp_path):
    live = report(tmp_path, lambda folder: folder / "report.html")
    assert live.stage_of(tmp_path / "base") == "SFT"
    assert live.stage_of(tmp_path) == "PPO"
    assert (live.later("SFT"), live.later("PPO")) == ((["PPO"], None), ([], None))
    assert live.end("stopped", "after step 3") == tmp_path / "report.html"
    assert live.end("failed") is None
    status = read_status(tmp_path)
    assert (status["state"], status["why"]) == ("stopped", "after step 3")


def test_later_stages_take_their_share_of_an_earlier_run(tmp_path):
    stages, seconds = {"teacher": "teacher", "student": "student", "": "GRPO"}, {"teacher": 20, "student": 10, "": 45}
    live = LiveReport(tmp_path, lambda folder: folder, "a model learns", stages, "", seconds)
    assert live.later("teacher") == (["student", "GRPO"], 2.75)
    assert live.later("student") == (["GRPO"], 4.5)
    assert live.later("GRPO") == ([], None)
    assert live.later("a point of a sweep") == ([], None)


HOLD = """
import sys
from pathlib import Path
from stepstack.core.folder import lock
lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_whose_process_is_gone_is_not_running(tmp_path):
    report(tmp_path, lambda folder: folder)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    )
    assert holder.stdout.readline() == b"held\n"
    assert folders.is_locked(tmp_path)
    assert read_status(tmp_path)["state"] == "running"
    holder.kill()
    holder.communicate()
    assert read_status(tmp_path)["state"] == "failed"
