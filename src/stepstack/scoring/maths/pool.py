"""Graders in processes that can be killed: a hanging answer costs one timeout, not the run. No torch."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe

from stepstack.scoring.maths.grade import Grade, grade_without_algebra

Item = tuple[str, str, str | None]  # (grader, gold, extracted answer)

MAX_START_SECONDS = 120.0  # in which a worker imports sympy on a busy machine
DIED = "error: the grader's process died"  # begins the reason of an item whose worker ended
ORPHAN_SECONDS = 60.0  # after the timeout, when an orphaned worker ends itself


class GraderError(RuntimeError):
    """Failure of the pool itself: a worker that does not start, or use after ``close``."""


class GraderPool:
    """Pool of ``workers`` processes. An item that twice runs longer than ``timeout`` seconds is wrong, "timeout".

    Its worker is killed and replaced, so neither SIGALRM nor the calling thread matters. The second try runs on the
    fresh worker, because a busy machine too makes an answer late. Answers that need no algebra are graded in this
    process. Workers start with the first answer that needs it, and stay. Verdicts, those of timeouts included, are
    cached by (grader, gold, answer), the ``cache`` most recent; that a worker died is no verdict, and is not.
    ``timeouts`` and ``errors`` count graded items (not their cached repeats), ``retries`` the second tries. The text of
    an error is the reason of its Grade. Use as a context manager or call ``close()``. POSIX only.
    """

    def __init__(self, workers: int = 4, timeout: float = 5.0, *, cache: int = 1 << 16, memory_gib: float = 4.0):
        if workers < 1 or timeout <= 0:
            raise ValueError(f"workers={workers} must be at least 1 and timeout={timeout} above 0")
        self.workers = workers
        self.timeout = timeout
        self.timeouts = 0
        self.errors = 0
        self.retries = 0
        self._memory = int(memory_gib * (1 << 30))
        self._size = cache
        self._cache: OrderedDict[Item, Grade] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grader")

    def map(self, items: Sequence[Item]) -> list[Grade]:
        """Grades in the order of ``items``; equal items are graded once. Raises ValueError as ``maths.grade`` does."""
        if self._closed:
            raise GraderError("the grader pool is closed: open a new one")
        grades: dict[Item, Grade] = {}
        waiting: list[Item] = []
        for item in dict.fromkeys(items):
            known = self._cached(item) or grade_without_algebra(*item)
            if known is None:
                waiting.append(item)
            else:
                grades[item] = known
        if waiting:
            self._start()
            grades |= zip(waiting, self._threads.map(self._ask, waiting), strict=True)
        return [grades[item] for item in items]

    def grade(self, grader: str, gold: str, answer: str | None) -> Grade:
        """Grade of one item."""
        return self.map([(grader, gold, answer)])[0]

    def close(self) -> None:
        """Kill the workers. Items in flight in other threads raise GraderError there."""
        self._closed = True
        for worker in self._all:
            worker.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> None:
        """Start all workers once, and at the same time so that their imports overlap."""
        with self._lock:
            while len(self._all) < self.workers:
                self._all.append(_Worker(self.timeout, self._memory))
                self._idle.put(self._all[-1])

    def _ask(self, item: Item) -> Grade:
        worker = self._idle.get()
        try:
            verdict = worker.ask(item)
            if verdict.reason == "timeout":
                with self._lock:
                    self.retries += 1
                verdict = worker.ask(item)
        finally:
            self._idle.put(worker)
        self._remember(item, verdict)
        return verdict

    def _cached(self, item: Item) -> Grade | None:
        with self._lock:
            if item in self._cache:
                self._cache.move_to_end(item)
            return self._cache.get(item)

    def _remember(self, item: Item, verdict: Grade) -> None:
        with self._lock:
            self.timeouts += verdict.reason == "timeout"
            self.errors += verdict.reason.startswith("error")
            if not verdict.reason.startswith(DIED):
                self._cache[item] = verdict
            while len(self._cache) > self._size:
                self._cache.popitem(last=False)


class _Worker:
    """One child process and its pipe. One thread at a time uses it; any thread may close it."""

    def __init__(self, timeout: float, memory: int):
        self._timeout = timeout
        self._memory = memory
        self._lock = threading.Lock()
        self._closed = False
        self._start()

    def ask(self, item: Item) -> Grade:
        """Grade within the timeout. A worker that hangs or dies is replaced. GraderError once closed."""
        self._wait_ready()
        begin = time.perf_counter()
        try:
            self._pipe.send_bytes(json.dumps(item).encode())
            if self._pipe.poll(self._timeout):
                return Grade(**json.loads(self._pipe.recv_bytes()))
            reason = "timeout"
        except (EOFError, OSError):
            reason = f"{DIED} with exit code {self._process.wait()}"
        self._replace()
        return Grade(False, item[2], reason, time.perf_counter() - begin)

    def close(self) -> None:
        """Kill the process. The pipe stays open for a thread that may be waiting on it."""
        with self._lock:
            self._closed = True
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        """Start the process without waiting for its imports."""
        self._pipe, theirs = Pipe()
        arguments = [str(theirs.fileno()), str(self._timeout + ORPHAN_SECONDS), str(self._memory)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stepstack.scoring.maths.worker", *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self._ready = False

    def _replace(self) -> None:
        with self._lock:
            if self._closed:
                raise GraderError("the grader pool was closed while grading")
            self._process.kill()
            self._process.wait()
            self._pipe.close()
            self._start()

    def _wait_ready(self) -> None:
        if self._ready:
            return
        try:
            if not self._pipe.poll(MAX_START_SECONDS):
                raise GraderError(
                    f"a grader's process did not start within {MAX_START_SECONDS:.0f} s: raise MAX_START_SECONDS in "
                    "stepstack/scoring/maths/pool.py"
                )
            self._pipe.recv_bytes()
        except (EOFError, OSError):
            code = self._process.wait()
            raise GraderError(f"a grader's process ended at its start with exit code {code}; stderr says why") from None
        self._ready = True
