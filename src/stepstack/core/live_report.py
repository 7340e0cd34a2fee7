"""The report of a run while the run goes on: its state in status.json, and its page, written anew now and then."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from stepstack.core.folder import is_locked
from stepstack.report import jsonl

FILE = "status.json"  # in the run's folder
KEYS = ("state", "why", "about", "command", "stages", "stage", "step", "total", "time")
MIN_SECONDS = 20.0  # between two pages
MAX_SHARE = 0.01  # of the time that a run may spend on its pages
State = Literal["running", "stopped", "finished", "failed"]


class LiveReport:
    """Writer of a run's page and status, of its first process alone.

    ``write`` makes the page of a run's folder. ``about``: a sentence on what is trained on what. ``stages``: the
    name of each stage by its folder inside of the run's, in training order; "" is the run itself. ``command``: the line
    that repeats the run, "" for one that was started from Python. ``seconds``: what each stage took, by its folder, in
    an earlier run (``stage_times``).
    """

    def __init__(
        self,
        folder: Path,
        write: Callable[[Path], Path],
        about: str,
        stages: Mapping[str, str],
        command: str,
        seconds: Mapping[str, float] = MappingProxyType({}),
    ):
        self.folder, self.write, self.stages = folder, write, dict(stages)
        self.seconds = {name: seconds[place] for place, name in self.stages.items() if place in seconds}
        self.status: dict[str, Any] = {"state": "running", "why": "", "about": about, "command": command}
        self.status |= {"stages": self.stages, "stage": "", "step": 0, "total": 0}
        self.due: float | None = time.monotonic()
        self._put()

    def stage_of(self, folder: Path) -> str:
        """Name of the stage whose folder it is, inside of the run's or the run's own."""
        relative = folder.relative_to(self.folder).as_posix()
        return self.stages.get("" if relative == "." else relative, relative)

    def later(self, stage: str) -> tuple[list[str], float | None]:
        """Names of the stages that come after one, and their time in times of that one's, as an earlier run had it;
        None where there was none, or nothing comes after."""
        names = list(self.stages.values())
        later = names[names.index(stage) + 1 :] if stage in names else []
        if not later or not self.seconds.get(stage):
            return later, None
        return later, sum(self.seconds[name] for name in later) / self.seconds[stage]

    def step(self, stage: str, step: int, total: int) -> None:
        """Write the page after a step, if it is due. A page that cannot be written is said, and is not tried again
        before the run ends: training does not stop for it."""
        self.status |= {"stage": stage, "step": step, "total": total}
        began = time.monotonic()
        if self.due is None or began < self.due:
            return
        self._put()
        try:
            self._page()
        except Exception as error:  # a fault of a page must not cost a run its hours; the last page raises it
            self.due = None
            print(f"the report of {self.folder} cannot be written while it runs: {error!r}", file=sys.stderr)
            return
        now = time.monotonic()
        self.due = now + max(MIN_SECONDS, (now - began) / MAX_SHARE)

    def end(self, state: State, why: str = "") -> Path | None:
        """Write the last page, with how the run ended; None where the end was written before."""
        if self.status["state"] != "running":
            return None
        self.status |= {"state": state, "why": why}
        self._put()
        return self._page()

    def failed(self, why: str) -> None:
        """Write the last page of a run that failed. Where it cannot be written that is said, and nothing raised."""
        try:
            self.end("failed", why)
        except Exception as error:  # a full disk stops both; the error that ended the run is the one to show
            print(f"the report of {self.folder} could not be written: {error!r}", file=sys.stderr)

    def _put(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        jsonl.write_json_atomic(self.folder / FILE, self.status | {"time": now})

    def _page(self) -> Path:
        with unchanged_random_state():
            return self.write(self.folder)


def read_status(folder: Path) -> dict[str, Any] | None:
    """Status of a run's folder, None for one that has none. A run that says it is running and whose folder no process
    holds was killed: its state is failed."""
    file = folder / FILE
    if not file.is_file():
        return None
    status = jsonl.read_json(file, *KEYS)
    if status["state"] == "running" and not is_locked(folder):
        status |= {"state": "failed", "why": "its process is gone without a word; the same command goes on"}
    return status


@contextlib.contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Random numbers after the block are those that would have come without it: on the CPU, of torch, numpy, Python."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
