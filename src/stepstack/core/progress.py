"""Progress of a run: a bar on a terminal for each stage, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from stepstack.terminal import console

METRIC_UNITS = {  # the first one that a row had is shown on a terminal, and more of them where it has the width
    "eval/accuracy": "held-out",
    "reward": "reward",
    "score": "score",
    "loss": "loss",
    "length": "tokens",
    "actor/entropy": "entropy",
    "failed": "failed",
}
RATE = "tokens_per_s"
BAR = 12  # columns
CLOCK = 8  # columns of the time left
LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class Progress:
    """Context manager; ``advance(step, row)`` after each step.

    ``name``: what makes progress. ``stage``: the part of it that this bar shows, "" where it has one only. ``later``:
    the stages after it, whose time nobody knows before they begin: they are named beside the time left of this one.
    """

    def __init__(
        self, name: str, total: int, done: int, visible: bool = True, stage: str = "", later: Sequence[str] = ()
    ):
        self.name, self.total, self.visible = name, total, visible
        self.title = stage or name
        self.line_title = f"{name} {stage}".rstrip()
        self.then = f", then {', '.join(later)}" if later else ""
        self.console = console(stderr=True)
        self.done, self.began, self.said = done, time.monotonic(), 0.0
        self.latest: dict[str, float] = {}
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR),
            MofNCompleteColumn(),
            TextColumn("{task.fields[notes]}", markup=False),
            TimeRemainingColumn(),
            TextColumn(f"left{self.then}", markup=False),
        )
        self.bar = Bar(*columns, console=self.console, disable=not (visible and self.console.is_terminal))
        self.task = self.bar.add_task(self.title, total=total, completed=done, notes="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self, step: int, row: Mapping[str, float]) -> None:
        self.latest |= {label: row[key] for key, label in METRIC_UNITS.items() if key in row}
        figures = [f"{label} {self.latest[label]:.3g}" for label in METRIC_UNITS.values() if label in self.latest]
        rate = [f"{_short(row[RATE])} tok/s"] if RATE in row else []
        ranked = [*figures[:1], *rate, *figures[1:]]
        self.bar.update(self.task, completed=step, notes="  ".join(self._fitting(ranked)))
        now = time.monotonic()
        if self.visible and not self.console.is_terminal and (now - self.said > LINE_EVERY or step == self.total):
            self.said = now
            done, spent = step - self.done, now - self.began
            left = (self.total - step) * spent / max(1, done)
            clock = f"  {spent:.0f} s, {left:.0f} s left{self.then}" if done > 0 else ""
            words = "  ".join([*figures, *rate])
            self.console.print(f"{self.line_title} {step}/{self.total}  {words}{clock}", soft_wrap=True)

    def _fitting(self, figures: Sequence[str]) -> list[str]:
        """The first figures, as many as leave the bar and the clock whole; one at least."""
        others = [len(self.title), BAR, 2 * len(str(self.total)) + 1, CLOCK, len(f"left{self.then}")]
        room = self.console.width - sum(others) - len(others) - 1  # a space between two columns
        fitting = sum(end - 2 <= room for end in accumulate(len(figure) + 2 for figure in figures))
        return list(figures[: max(1, fitting)])


def _short(rate: float) -> str:
    """A rate in three figures: 4.92k for 4,917."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if rate >= 0.9995 * size:
            return f"{rate / size:.3g}{letter}"
    return f"{rate:.3g}"
