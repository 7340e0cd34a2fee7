"""The progress of a run on terminals of several widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stepstack.core import progress

ROW = {"reward": 0.53125, "eval/accuracy": 0.8711, "length": 38.25, "loss": -0.0125, "actor/entropy": 1.25}
RATE = {"tokens_per_s": 4917.2}


def last_line(monkeypatch, width: int, row: dict, later: tuple[str, ...]) -> str:
    screen = io.StringIO()
    terminal = Console(file=screen, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "console", lambda stderr: terminal)
    with progress.Progress("perception-tiny-detection", 3000, 0, stage="SFT", later=later) as bar:
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
    assert line.count(":") == 2  # h:mm:ss
    assert line.rstrip().endswith("left, then GRPO" if later else "left")
    assert ("entropy 1.25" in line) == (width == 160)


def test_a_log_says_run_stage_and_what_comes_after(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", lambda stderr: Console(file=out, width=80))
    with progress.Progress("orz-tiny", 2, 0, stage="SFT", later=("PPO",)) as bar:
        bar.advance(1, {"loss": 0.5, "tokens_per_s": 1.25e6})
    assert out.getvalue().startswith("orz-tiny SFT 1/2  loss 0.5  1.25M tok/s")
    assert out.getvalue().rstrip().endswith("s left, then PPO")
