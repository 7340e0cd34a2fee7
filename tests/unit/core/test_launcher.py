"""The end of a run on several machines: each launcher waits for the others, and the head's leaves last."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from types import SimpleNamespace

from torch.distributed import TCPStore

from stepstack.core.launcher import Agent

MACHINES = 3


class Slow:
    """A store by a slow network: a moment passes before each request."""

    def __init__(self, store: TCPStore):
        self.store = store

    def __getattr__(self, name):
        time.sleep(0.1)
        return getattr(self.store, name)


def wait(store, rank: int, timeout: float = 30) -> None:
    group = SimpleNamespace(group_rank=rank, group_world_size=MACHINES)
    Agent._exit_barrier(SimpleNamespace(_worker_group=group, _store=store, _exit_barrier_timeout=timeout))


def test_the_head_leaves_last_when_another_machine_is_slow(capsys):
    """The slow one is the last to arrive, and all its requests but the first come after the head could have left."""
    head = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]
    others = [TCPStore("127.0.0.1", head[0].port, timeout=timedelta(seconds=30)) for _ in range(MACHINES - 1)]

    def leave() -> None:
        wait(head[0], 0)
        head.clear()  # its server ends with it

    ends = [leave, lambda: wait(others[0], 1), lambda: wait(Slow(others[1]), 2)]
    threads = [threading.Thread(target=end) for end in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not head
    assert capsys.readouterr().err == ""


def test_a_machine_that_does_not_come_to_the_end_is_one_line(capsys):
    wait(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), 0, timeout=0.5)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("stepstack launch: this machine is done, another did not say that it is (")
