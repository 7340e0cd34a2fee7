"""Worker processes that a trainer starts beside itself, and anew when they die. No torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stepstack.generation.types import EngineError

GRACE = 10.0  # seconds to end by themselves


class LocalWorkers:
    """``count`` processes `stepstack generate CONFIG`, whose words are ``config``; their output goes to ``logs``.
    ``pin`` gives each a processor core of its own."""

    def __init__(self, count: int, config: Sequence[str], logs: Path, restarts: int, pin: bool):
        self.count, self.config, self.logs, self.restarts, self.pin = count, list(config), logs, restarts, pin
        self.running: dict[str, subprocess.Popen] = {}
        self._deaths = self._arrived = self._started = 0
        self._words: list[str] = []
        self._cores: list[list[int]] = []

    def start(self, address: str, token_file: Path) -> None:
        """Start all of them. EngineError where there are too few cores to pin them to."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self._words = ["--connect", address, "--token-file", str(token_file), "--end-with-parent"]
        cores = sorted(os.sched_getaffinity(0)) if self.pin else []
        if self.pin and len(cores) <= self.count:
            raise EngineError(f"stream.pin: {self.count} workers and a trainer on {len(cores)} cores: set it to false")
        if self.pin:
            os.sched_setaffinity(0, cores[: len(cores) - self.count])
        self._cores = [[cores[-1 - place]] if self.pin else [] for place in range(self.count)]
        for place in range(self.count):
            self._start(place)

    def _start(self, place: int) -> None:
        name = f"local-{place}-{self._started}"
        self._started += 1
        words = [sys.executable, "-m", "stepstack", "generate", *self.config, *self._words, "--worker", name]
        words += ["--cores", ",".join(map(str, self._cores[place]))] if self.pin else []
        with (self.logs / f"{place}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def replace_dead(self, arrived: int) -> list[str]:
        """Names of those that died since the last call, for each of which another is started. ``arrived``: groups that
        came so far. EngineError where they die again and again while none comes."""
        dead = [name for name, process in self.running.items() if process.poll() is not None]
        if arrived > self._arrived:
            self._arrived, self._deaths = arrived, 0
        for name in dead:
            code = self.running.pop(name).returncode
            self._deaths += 1
            place = int(name.split("-")[1])
            if self._deaths > self.restarts:
                raise EngineError(
                    f"the trainer's own workers died {self._deaths} times without a group in between, the last one "
                    f"with {code}: {self.logs / f'{place}.log'} says why"
                )
            self._start(place)
        return dead

    def stop(self, told: bool = True) -> None:
        """End them. ``told``: they were told to, and have a while."""
        for process in self.running.values():
            if not told:
                process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
