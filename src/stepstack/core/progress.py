"""Progress of a run: a bar on a terminal for each stage, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
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
WIDE = 100  # columns of a terminal on which this stage's time left has room beside that of all
LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class Progress:
    """Context manager; ``advance(step, row)`` after each step.

    ``name``: what makes progress. ``stage``: the part of it that this bar shows, "" where it has one only. ``later``:
    the stages after it. ``ratio``: the time of their steps in times of this stage's, by which the time left is that of
    all of them; None where it is not known: then it is that of this stage, and the others are named.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int,
        visible: bool = True,
        stage: str = "",
        later: Sequence[str] = (),
        ratio: float | None = None,
    ):
        self.name, self.total, self.visible = name, total, visible
        self.title = stage or name
        self.line_title = f"{name} {stage}".rstrip()
        self.later, self.ratio = ", ".join(later), ratio
        self.then = f", then {self.later}" if later else ""
        self.console = console(stderr=True)
        self.done, self.began, self.said = done, time.monotonic(), 0.0
        self.latest: dict[str, float] = {}
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR),
            MofNCompleteColumn(),
            TextColumn("{task.fields[notes]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self.bar = Bar(*columns, console=self.console, disable=not (visible and self.console.is_terminal))
        self.task = self.bar.add_task(
            self.title, total=total, completed=done, notes="", left=f"-:--:-- left{self.then}"
        )

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
        now = time.monotonic()
        done, spent = step - self.done, now - self.began
        clock, words = self._left(step, spent / done) if done > 0 else (f"-:--:-- left{self.then}", "")
        notes = "  ".join(self._fitting(ranked, clock))
        self.bar.update(self.task, completed=step, notes=notes, left=clock)
        if self.visible and not self.console.is_terminal and (now - self.said > LINE_EVERY or step == self.total):
            self.said = now
            parts = [*figures, *rate, *([f"{spent:.0f} s, {words}"] if words else [])]
            self.console.print(f"{self.line_title} {step}/{self.total}  {'  '.join(parts)}", soft_wrap=True)

    def _left(self, step: int, pace: float) -> tuple[str, str]:
        """The time left at ``pace`` seconds a step, for a bar and for a line in a log."""
        left = (self.total - step) * pace
        if self.ratio is None:
            return f"{_clock(left)} left{self.then}", f"{left:.0f} s left{self.then}"
        whole = left + self.ratio * self.total * pace
        short, wide = f"~{_clock(whole)} left", f"{_clock(left)} left, ~{_clock(whole)}"
        bar = f"{wide if self.console.width >= WIDE else short} with {self.later}"
        return bar, f"{left:.0f} s left, about {_about(whole)} with {self.later}"

    def _fitting(self, figures: Sequence[str], clock: str) -> list[str]:
        """The first figures, as many as leave the bar and the time left whole; one at least."""
        others = [len(self.title), BAR, 2 * len(str(self.total)) + 1, len(clock)]
        room = self.console.width - sum(others) - len(others)  # a space between two columns
        fitting = sum(end - 2 <= room for end in accumulate(len(figure) + 2 for figure in figures))
        return list(figures[: max(1, fitting)])


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds: 0:03:20."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _about(seconds: float) -> str:
    """A time in the largest unit of which it has two: 95 s, 3 min, 2.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _short(rate: float) -> str:
    """A rate in three figures: 4.92k for 4,917."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if rate >= 0.9995 * size:
            return f"{rate / size:.3g}{letter}"
    return f"{rate:.3g}"
