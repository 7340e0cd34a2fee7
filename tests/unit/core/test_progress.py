"""The progress of a run on terminals of several widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stepstack.core import progress

ROW = {"reward": 0.53125, "eval/accuracy": 0.8711, "length": 38.25, "loss": -0.0125, "actor/entropy": 1.25}


def last_line(monkeypatch, width: int) -> str:
    screen = io.StringIO()
    terminal = Console(file=screen, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "console", lambda stderr: terminal)
    with progress.Progress("stepvideo-tiny", 3000, 0) as bar:
        bar.advance(120, ROW)
    return max(screen.getvalue().replace("\r", "\n").splitlines(), key=lambda line: "120/3000" in line)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_bar_and_both_clocks_are_whole_and_the_rest_is_what_fits(monkeypatch, width):
    line = last_line(monkeypatch, width)
    assert len(line.rstrip()) <= width
    assert "stepvideo-tiny" in line
    assert "120/3000" in line
    assert "held-out 0.871" in line
    assert "…" not in line
    assert line.count(":") == 4  # h:mm:ss twice
    assert ("entropy 1.25" in line) == (width == 160)
