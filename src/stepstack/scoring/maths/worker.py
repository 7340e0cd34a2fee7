"""Child process of ``pool.GraderPool``: it grades items until its pipe closes. Never imports torch.

It is started by ``python -m stepstack.scoring.maths.worker FD WATCHDOG_SECONDS MEMORY_BYTES``, so neither fork nor the
parent's main module (which imports torch) is involved. A message is a JSON list [grader, gold, answer]. The reply is
the fields of a Grade.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection

from stepstack.scoring.maths.grade import Grade, grade


def reply(message: bytes) -> Grade:
    """Grade of one message. An exception becomes the reason of a wrong verdict, which the pool counts."""
    grader, gold, answer = json.loads(message)
    try:
        return grade(grader, gold, answer)
    except Exception as error:  # an exception from hostile input is the verdict of that item
        return Grade(False, answer, f"error: {type(error).__name__}: {str(error)[:500]}")


def main(fd: int, watchdog: float, memory: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.dup2(2, 1)  # what a grader prints must not look like output of the run
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))  # 9**9**9 ends as a MemoryError
    grade("math_verify", "\\frac{1}{2}", "0.50")
    grade("orz_legacy", "\\frac{1}{2}", "0.50")
    connection = Connection(fd)
    connection.send_bytes(b"ready")
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        # Outlives the parent's own limit; ends a busy worker whose parent was killed.
        faulthandler.dump_traceback_later(watchdog, exit=True)
        answer = json.dumps(dataclasses.asdict(reply(message))).encode()
        faulthandler.cancel_dump_traceback_later()
        connection.send_bytes(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
