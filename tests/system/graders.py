"""Graders as bad as can be. No torch: the pool's worker processes import this file."""

from __future__ import annotations

import os
import time


def hang(gold: str, answer: str) -> bool:
    """Never answers where the gold is 1; exact elsewhere."""
    while gold == "1":
        time.sleep(100)
    return gold == answer


def die(gold: str, answer: str) -> bool:
    """Takes its process with it where the gold is 1."""
    if gold == "1":
        os.kill(os.getpid(), 9)
    return gold == answer


def fail(gold: str, answer: str) -> bool:
    """Raises where the gold is 1."""
    if gold == "1":
        raise ZeroDivisionError("a bad grader")
    return gold == answer
