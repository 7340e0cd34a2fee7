"""Work in a child process that can be killed: what hangs costs one timeout, not the run. No torch.

The parent's end is ``ChildProcess``; the child's is ``serve``, called by a module that runs as ``python -m MODULE FD
WATCHDOG_SECONDS MEMORY_BYTES``, so that neither fork nor the parent's main module (which imports torch) is involved.
Messages are JSON.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

MAX_START_SECONDS = 120.0  # in which a child imports what it needs on a busy machine
ORPHAN_SECONDS = 60.0  # after the timeout, when an orphaned child ends itself


class ChildError(RuntimeError):
    """Failure of the machinery itself: a child that does not start, or use after ``close``."""


class ChildTimeout(Exception):
    """A message was not answered in time; its child was killed and replaced."""


class ChildDied(Exception):
    """The child ended over a message, and was replaced."""


class ChildProcess:
    """One child process and its pipe. One thread at a time uses it; any thread may close it. POSIX only."""

    def __init__(self, module: str, timeout: float, memory_gib: float):
        """``module`` runs in the child; ``timeout`` seconds for a message; ``memory_gib``: most memory of the child."""
        self._module, self._timeout, self._memory = module, timeout, int(memory_gib * (1 << 30))
        self._lock = threading.Lock()
        self._closed = False
        self._start()

    def ask(self, message: Any) -> Any:
        """The child's answer to a message, both plain JSON.

        ChildTimeout and ChildDied where there is none: the child was then replaced by a fresh one. ChildError once
        closed, and where a child does not start.
        """
        self._wait_ready()
        try:
            self._pipe.send_bytes(json.dumps(message).encode())
            if self._pipe.poll(self._timeout):
                return json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            code = self._process.wait()
            self._replace()
            raise ChildDied(f"exit code {code}") from None
        self._replace()
        raise ChildTimeout(f"no answer within {self._timeout:g} s")

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
            [sys.executable, "-m", self._module, *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self._ready = False

    def _replace(self) -> None:
        with self._lock:
            if self._closed:
                raise ChildError(f"the process of {self._module} was closed while it worked")
            self._process.kill()
            self._process.wait()
            self._pipe.close()
            self._start()

    def _wait_ready(self) -> None:
        if self._ready:
            return
        try:
            if not self._pipe.poll(MAX_START_SECONDS):
                raise ChildError(
                    f"the process of {self._module} did not start within {MAX_START_SECONDS:.0f} s: raise "
                    "MAX_START_SECONDS in stepstack/scoring/child_process.py"
                )
            self._pipe.recv_bytes()
        except (EOFError, OSError):
            code = self._process.wait()
            raise ChildError(
                f"the process of {self._module} ended at its start with exit code {code}; stderr says why"
            ) from None
        self._ready = True


def serve(arguments: list[str], reply: Callable[[Any], Any], warm_up: Callable[[], None] | None = None) -> None:
    """Answer messages until the pipe closes. ``arguments``: those of the command line; ``reply`` makes an answer of a
    message and must not raise; ``warm_up`` runs under the memory limit before the first message is taken."""
    fd, watchdog, memory = int(arguments[0]), float(arguments[1]), int(arguments[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.dup2(2, 1)  # what the work prints must not look like output of the run
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))  # 9**9**9 ends as a MemoryError
    if warm_up is not None:
        warm_up()
    connection = Connection(fd)
    connection.send_bytes(b"ready")
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        # Outlives the parent's own limit; ends a busy child whose parent was killed.
        faulthandler.dump_traceback_later(watchdog, exit=True)
        answer = json.dumps(reply(json.loads(message))).encode()
        faulthandler.cancel_dump_traceback_later()
        connection.send_bytes(answer)
