"""Graders in processes that can be killed: a hanging answer costs one timeout, not the run. No torch."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from stepstack.scoring.child_process import ChildDied, ChildError, ChildProcess, ChildTimeout
from stepstack.scoring.maths.grade import Grade, grade_without_algebra

Item = tuple[str, str, str | None]  # (grader, gold, extracted answer)

DIED = "error: the grader's process died"  # begins the reason of an item whose worker ended
WORKER = "stepstack.scoring.maths.worker"


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
        self._memory = memory_gib
        self._size = cache
        self._cache: OrderedDict[Item, Grade] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._idle: queue.SimpleQueue[ChildProcess] = queue.SimpleQueue()
        self._all: list[ChildProcess] = []
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grader")

    def map(self, items: Sequence[Item]) -> list[Grade]:
        """Grades in the order of ``items``; equal items are graded once. Raises ValueError as ``maths.grade`` does."""
        if self._closed:
            raise ChildError("the grader pool is closed: open a new one")
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
        """Kill the workers. Items in flight in other threads raise ChildError there."""
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
                self._all.append(ChildProcess(WORKER, self.timeout, self._memory))
                self._idle.put(self._all[-1])

    def _ask(self, item: Item) -> Grade:
        worker = self._idle.get()
        try:
            verdict = _verdict(worker, item)
            if verdict.reason == "timeout":
                with self._lock:
                    self.retries += 1
                verdict = _verdict(worker, item)
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


def _verdict(worker: ChildProcess, item: Item) -> Grade:
    """Grade of one item; that its worker hung or died is one too."""
    begin = time.perf_counter()
    try:
        return Grade(**worker.ask(item))
    except ChildTimeout:
        reason = "timeout"
    except ChildDied as death:
        reason = f"{DIED} with {death}"
    return Grade(False, item[2], reason, time.perf_counter() - begin)
