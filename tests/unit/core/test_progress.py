"""The progress of a run on terminals of several widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stepstack.core import progress

ROW = {"reward": 0.53125, "eval/accuracy": 0.8711, "length": 38.25, "loss": -0.0125, "actor/entropy": 1.25}
RATE = {"tokens_per_s": 4917.2}


class Stopwatch:
    """Clock that stands still but for what is added to it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def last_line(monkeypatch, width: int, row: dict, later: tuple[str, ...], ratio: float | None = None) -> str:
    screen, watch = io.StringIO(), Stopwatch(monkeypatch)
    terminal = Console(file=screen, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "console", lambda stderr: terminal)
    with progress.Progress("perception-tiny-detection", 3000, 0, stage="SFT", later=later, ratio=ratio) as bar:
        watch.now += 60
        bar.advance(120, row)
    return max(screen.getvalue().replace("\r", "\n").splitlines(), key=lambda line: "120/3000" in line)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("later", [(), ("GRPO",)])
def test_stage_step_figure_rate_and_time_are_whole_and_the_rest_is_what_fits(monkeypatch, width, later):
    line = last_line(monkeypatch, width, ROW | RATE, later)
    assert len(line.rstrip().removeprefix("\x1b[2K")) <= width  # which clears the line
    assert "SFT " in line
    for part in ("120/3000", "held-out 0.871", "4.92k tok/s"):
        assert part in line
    assert "…" not in line
    assert line.rstrip().endswith("0:24:00 left, then GRPO" if later else "0:24:00 left")
    assert ("entropy 1.25" in line) == (width == 160)


@pytest.mark.parametrize(("width", "own"), [(80, ""), (100, "0:24:00 left, ")])
def test_the_time_left_is_that_of_all_stages_where_an_earlier_run_tells_it(monkeypatch, width, own):
    line = last_line(monkeypatch, width, ROW | RATE, ("GRPO",), ratio=2.0)  # 3,000 steps of half a second, then 3,000 s
    assert len(line.rstrip().removeprefix("\x1b[2K")) <= width
    for part in ("SFT ", "120/3000", "held-out 0.871", "4.92k tok/s"):
        assert part in line
    end = "~1:14:00 left with GRPO" if width == 80 else "~1:14:00 with GRPO"
    assert line.rstrip().endswith(f" {own}{end}")


def log_lines(monkeypatch, done: int, ratio: float | None, step: int, seconds: float) -> list[str]:
    out, watch = io.StringIO(), Stopwatch(monkeypatch)
    monkeypatch.setattr(progress, "console", lambda stderr: Console(file=out, width=80))
    with progress.Progress("orz-tiny", 100, done, stage="SFT", later=("PPO",), ratio=ratio) as bar:
        watch.now += seconds
        bar.advance(step, {"loss": 0.5})
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("done", "step", "seconds", "said"),
    [
        (0, 25, 12, "12 s, 36 s left, about 3 min with PPO"),
        (50, 60, 12, "12 s, 48 s left, about 7 min with PPO"),  # resumed: its pace is that of the steps made here
        (0, 100, 20, "20 s, 0 s left, about 60 s with PPO"),
        (0, 50, 3600, "3600 s, 3600 s left, about 7.0 h with PPO"),
    ],
)
def test_a_log_says_the_time_left_of_this_stage_and_of_all(monkeypatch, done, step, seconds, said):
    [line] = log_lines(monkeypatch, done, 3.0, step, seconds)
    assert line == f"orz-tiny SFT {step}/100  loss 0.5  {said}"


def test_before_the_first_step_no_time_is_known(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
    assert log_lines(monkeypatch, 0, 3.0, 0, 5.0) == ["orz-tiny SFT 0/100  loss 0.5"]


def test_a_log_says_run_stage_and_what_comes_after(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", lambda stderr: Console(file=out, width=80))
    with progress.Progress("orz-tiny", 2, 0, stage="SFT", later=("PPO",)) as bar:
        bar.advance(1, {"loss": 0.5, "tokens_per_s": 1.25e6})
    assert out.getvalue().startswith("orz-tiny SFT 1/2  loss 0.5  1.25M tok/s")
    assert out.getvalue().rstrip().endswith("s left, then PPO")
