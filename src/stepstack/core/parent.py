"""A process that ends when the one that started it is gone. No torch."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK_EVERY = 0.5  # seconds


def end_with_parent() -> None:
    """Send this process a SIGTERM once its parent is gone, also by kill -9: a run then saves and ends."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
