"""Progress of a run: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from stepstack.terminal import console

METRIC_UNITS = {  # the first ones are shown where a terminal is too narrow for all
    "eval/accuracy": "held-out",
    "reward": "reward",
    "length": "tokens",
    "loss": "loss",
    "actor/entropy": "entropy",
    "score": "score",
    "failed": "failed",
}
BAR = 20  # columns
OTHER_COLUMNS = 20  # of the elapsed time, that left, and the spaces between
LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class Progress:
    """Context manager; ``advance(step, row)`` after each step."""

    def __init__(self, name: str, total: int, done: int, visible: bool = True):
        self.name, self.total, self.visible = name, total, visible
        self.console = console(stderr=True)
        self.done, self.began, self.said = done, time.monotonic(), 0.0
        self.latest: dict[str, float] = {}
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR),
            MofNCompleteColumn(),
            TextColumn("{task.fields[notes]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=self.console, disable=not (visible and self.console.is_terminal))
        self.task = self.bar.add_task(name, total=total, completed=done, notes="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self, step: int, row: Mapping[str, float]) -> None:
        self.latest |= {label: row[key] for key, label in METRIC_UNITS.items() if key in row}
        figures = [f"{label} {self.latest[label]:.3g}" for label in METRIC_UNITS.values() if label in self.latest]
        self.bar.update(self.task, completed=step, notes="  ".join(self._fitting(figures)))
        now = time.monotonic()
        if self.visible and not self.console.is_terminal and (now - self.said > LINE_EVERY or step == self.total):
            self.said = now
            done, spent = step - self.done, now - self.began
            clock = f"  {spent:.0f} s, {(self.total - step) * spent / done:.0f} s left" if done > 0 else ""
            self.console.print(f"{self.name} {step}/{self.total}  {'  '.join(figures)}{clock}", soft_wrap=True)

    def _fitting(self, figures: Sequence[str]) -> list[str]:
        """The first figures, as many as leave the bar and the clocks whole; one at least."""
        room = self.console.width - len(self.name) - BAR - 2 * len(str(self.total)) - 1 - OTHER_COLUMNS
        fitting = sum(end <= room for end in accumulate(len(figure) + 2 for figure in figures))
        return list(figures[: max(1, fitting)])
