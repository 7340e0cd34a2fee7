"""Progress of a run: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from stepstack.terminal import console

METRIC_UNITS = {
    "reward": "reward",
    "eval/accuracy": "held-out",
    "length": "tokens",
    "loss": "loss",
    "actor/entropy": "entropy",
    "score": "score",
    "failed": "failed",
}
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
            BarColumn(20),
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
        notes = "  ".join(f"{label} {value:.3g}" for label, value in self.latest.items())
        self.bar.update(self.task, completed=step, notes=notes)
        now = time.monotonic()
        if self.visible and not self.console.is_terminal and (now - self.said > LINE_EVERY or step == self.total):
            self.said = now
            done, spent = step - self.done, now - self.began
            clock = f"  {spent:.0f} s, {(self.total - step) * spent / done:.0f} s left" if done > 0 else ""
            self.console.print(f"{self.name} {step}/{self.total}  {notes}{clock}", soft_wrap=True)
