"""Graders for test_grader_pool, called in the workers by their dotted names. A light module: workers import it."""

import json
import os
import sys
import time


def sleeps(gold: str, answer: str) -> bool:
    time.sleep(100)
    return True


def spins(gold: str, answer: str) -> bool:
    return 9**9**9 > 0  # one C call that holds the interpreter: no signal handler would run


def raises(gold: str, answer: str) -> bool:
    raise KeyError("a table has no such row")


def dies(gold: str, answer: str) -> bool:
    os._exit(7)


def slow_at_first(gold: str, answer: str) -> bool:
    if not os.path.exists(gold):
        open(gold, "x").close()
        time.sleep(100)
    return True


def dies_at_first(gold: str, answer: str) -> bool:
    if not os.path.exists(gold):
        open(gold, "x").close()
        os._exit(7)
    return True


def prints(gold: str, answer: str) -> bool:
    print("chatter on stdout")
    return True


def process(gold: str, answer: str) -> bool:
    raise LookupError(json.dumps({"pid": os.getpid(), "torch": "torch" in sys.modules}))
