"""The driver of `make gpu`: one step after another, each within its time, and all that there is in files at any moment.

Standard library only, so that it runs, and says what lacks, where nothing of the project is installed. The driver alone
writes into the folder: a record a step (<step>.json), and day.json with all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from evals.gpu.packages import ROOT, Package, lacking, packages
from evals.gpu.steps import Step
from stepstack.report import jsonl

MINUTES = 9.0  # the day for which the budgets of steps are
REFRESH = 5.0  # seconds between two looks at the figures of a step that runs
RESERVE = 5.0  # seconds at the end for the last record and the table
ERROR = re.compile(r"(?:[\w.]+(?:Error|Exception)|stepstack \w+)\b.*:")
DEVICE_SECONDS = 60.0  # for importing torch and looking at the GPU


class Day:
    """A day of ``seconds`` with the records of its steps in the folder ``out``."""

    def __init__(self, steps: Sequence[Step], seconds: float, out: Path):
        self.steps, self.out = steps, out
        self.scale = seconds / (60 * MINUTES)
        self.seconds, self.ends = seconds, time.monotonic() + seconds
        self.records: list[dict[str, Any]] = []
        self.stopped = ""  # the name of the signal that ended the day
        self.known: dict[str, Package] = {}
        self.device: dict[str, Any] = {}
        self.provenance: dict[str, Any] | None = None

    def run(self) -> int:
        """Run all steps and print the table. Exit status: 1 where a step failed, else 0, also after a signal."""
        self.out.mkdir(parents=True, exist_ok=True)
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with tempfile.TemporaryDirectory(prefix="stepstack-gpu-") as scratch:
                self._look(Path(scratch))
                for step in self.steps:
                    self._take(step, Path(scratch) / step.name)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        print(table(self.records, self.device, self.known), flush=True)
        return int(any(record["outcome"] == "failed" for record in self.records))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopped = signal.Signals(number).name

    # -- before the steps ----------------------------------------------------------------------------------------

    def _look(self, scratch: Path) -> None:
        """Find out which packages and which GPU are here."""
        self.known = packages()
        place = scratch / "device"
        command = [sys.executable, "-m", "evals.gpu.work", "device"]
        child = Child(command, place)
        while child.running() and not self.stopped and child.age() < DEVICE_SECONDS * max(1.0, self.scale):
            time.sleep(0.1)
        child.end()
        lines = [json.loads(line) for line in (place / "out").read_text().splitlines() if line.startswith("{")]
        self.device = lines[0] if lines else {"torch": None, "cuda": None, "gpu": None, "why": child.last_words()}
        self.provenance = lines[1] if len(lines) > 1 else None
        self._keep()

    def _reason(self, step: Step) -> str:
        """Why a step is left out; an empty string where it is not."""
        if self.stopped:
            return f"the day was stopped by {self.stopped}"
        earlier = {record["step"]: record for record in self.records}
        if step.cuda and self.device["gpu"] is None:
            return f"needs a CUDA device and torch {self.device['torch']} finds none"
        if step.instead_of in earlier and not earlier[step.instead_of].get("lacks"):
            return f"{step.instead_of} stands for it"
        if lacks := lacking(step.needs, self.known):
            return f"lacks {', '.join(f'{p.name} {p.wanted}'.strip() for p in lacks)}"
        left = self._left()
        if left < step.least * self.scale:
            return f"no time: {max(0.0, left):.0f} of {self.seconds:.0f} s are left"
        return ""

    def _left(self) -> float:
        return self.ends - time.monotonic() - RESERVE * min(1.0, self.scale)

    # -- a step --------------------------------------------------------------------------------------------------

    def _take(self, step: Step, place: Path) -> None:
        record: dict[str, Any] = {"step": step.name, "about": step.about}
        reason = self._reason(step)
        if reason:
            lacks = [p.name for p in lacking(step.needs, self.known)]
            self._write({**record, "outcome": "left out", "reason": reason, "lacks": lacks})
            return
        left = self._left()
        limit = left if step.seconds is None else min(left, step.seconds * self.scale)
        print(f"gpu: {step.name}, at most {limit:.0f} s: {step.about}", file=sys.stderr, flush=True)
        child = Child(step.command(place), place)
        looked = 0.0
        while child.running() and not self.stopped and child.age() < limit:
            if child.age() - looked > REFRESH:
                looked = child.age()
                self._write({**record, "outcome": "running", **_figures(step, place)})
            time.sleep(0.1)
        spent = child.age()
        status = child.end()
        record |= {"command": child.command, "seconds": round(spent, 1), "limit": round(limit, 1)}
        figures = _figures(step, place)
        if status is None:
            why = f"stopped by {self.stopped}" if self.stopped else f"its {limit:.0f} s were over"
            self._write({**record, "outcome": "stopped", "reason": why, **figures})
        elif status:
            tail = (place / "out").read_text(errors="replace").splitlines()[-40:]
            why = f"exit status {status}: {child.last_words()}"
            self._write({**record, "outcome": "failed", "reason": why, **figures, "output": tail})
        else:
            self._write({**record, "outcome": "done", "reason": "", **figures})

    def _write(self, record: dict[str, Any]) -> None:
        """Put a step's record into its file and into the day's."""
        self.records = [r for r in self.records if r["step"] != record["step"]] + [record]
        jsonl.write_json_atomic(self.out / f"{record['step']}.json", record | {"provenance": self.provenance})
        self._keep()

    def _keep(self) -> None:
        facts = {"device": self.device, "seconds": self.seconds, "stopped": self.stopped}
        wanted = {name: asdict(package) for name, package in self.known.items()}
        day = {**facts, "steps": self.records, "packages": wanted, "provenance": self.provenance}
        jsonl.write_json_atomic(self.out / "day.json", day)


def _figures(step: Step, place: Path) -> dict[str, Any]:
    figures = step.read(place)
    return {"figures": figures, "line": step.line(figures)} if figures else {}


class Child:
    """A command in the repository with all that it starts; its output goes to ``place``/out."""

    def __init__(self, command: Sequence[str], place: Path):
        place.mkdir(parents=True, exist_ok=True)
        self.command, self.output, self.began = list(command), place / "out", time.monotonic()
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
            )

    def age(self) -> float:
        return time.monotonic() - self.began

    def running(self) -> bool:
        return self.process.poll() is None

    def end(self) -> int | None:
        """Exit status; None where the process still ran and was killed, with all that it had started. It is not asked
        first: whatever it has measured stands in a file, and a save would take the time of the next step."""
        status = self.process.poll()
        if status is None:
            for number in (self.process.pid, *descendants(self.process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            self.process.wait()
        return status

    def last_words(self) -> str:
        """The last line, or the last of an error: what accelerate says of a process that failed comes after its own."""
        lines = [line.strip() for line in self.output.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if ERROR.match(line) and "CalledProcessError" not in line]
        return (errors or lines or ["it printed nothing"])[-1][:200]


def descendants(process: int) -> list[int]:
    """Numbers of all processes below one, those in sessions of their own included."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


# -- the table -------------------------------------------------------------------------------------------------------


def table(records: Sequence[dict[str, Any]], device: dict[str, Any], known: dict[str, Package]) -> str:
    """The day in lines: a step a row with its figures, or the reason why there are none."""
    gpu = device["gpu"]
    lines = [f"torch {device['torch']}, CUDA {device['cuda']}, {gpu['name'] if gpu else 'no GPU'}"]
    lacks = [f"{p.name} {p.wanted}".strip() for p in known.values() if p.here is None]
    other = [f"{p.name} {p.here} for {p.wanted}" for p in known.values() if p.here and differs(p)]
    lines += [f"lacking, with the versions wanted: {', '.join(lacks)}"] if lacks else []
    lines += [f"other versions: {', '.join(other)}"] if other else []
    rows = [("step", "outcome", "seconds", "what came of it")]
    for r in records:
        said = [r[key] for key in ("line", "reason") if r.get(key)]
        rows.append((r["step"], r["outcome"], f"{r['seconds']:.0f}" if "seconds" in r else "", "; ".join(said)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        lines.append("  ".join([*cells, row[3]]).rstrip())
    return "\n".join(lines)


def differs(package: Package) -> bool:
    """Whether an exact version is wanted and another one is here."""
    return package.wanted[:1].isdigit() and package.here != package.wanted
