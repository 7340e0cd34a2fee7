"""The processes that `accelerate launch` started: on which machines, and for whoever needs no Run."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from stepstack.config import Launch


class LaunchedProcesses:
    """``core.types.ProcessGroup`` over accelerate: one process where it was not launched."""

    def __init__(self, launch: Launch):
        self.state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=launch.timeout))
        if self.device.type == "cpu":
            torch.set_num_threads(launch.threads)

    @property
    def device(self) -> torch.device:
        return self.state.device

    @property
    def rank(self) -> int:
        return self.state.process_index

    @property
    def processes(self) -> int:
        return self.state.num_processes

    def gather(self, items: list) -> list:
        return gather_object(items) if self.processes > 1 else items


@dataclass(frozen=True, slots=True)
class Machines:
    """Where the processes of a run are. ``places``: (host name, address) by rank; ``local``: processes a machine."""

    places: Sequence[tuple[str, str]]
    rank: int
    local: int

    def lost(self, error: RuntimeError) -> str | None:
        """Sentence for the user where ``error`` is that of an exchange whose other side has gone, else None."""
        text = str(error)
        network = isinstance(error, torch.distributed.DistError) or re.search(r"gloo|NCCL|[Cc]onnection", text)
        if len(self.places) == 1 or not network:
            return None
        others = [rank for rank in range(len(self.places)) if rank != self.rank]
        named = [rank for rank in others if any(_names(text, name) for name in self.places[rank])]
        lost = sorted({rank // self.local for rank in named or others})
        which = " or ".join(f"machine {node} ({self.places[node * self.local][0]})" for node in lost[:4])
        more = f" or one of {len(lost) - 4} others" if len(lost) > 4 else ""
        return (
            f"lost the connection to a process on {which}{more}, which ended, was killed or cannot be reached; the "
            "same command on all machines goes on from the last checkpoint"
        )


def this_place() -> tuple[str, str]:
    """Host name and address of this machine, as errors of the network name it."""
    name = socket.gethostname()
    try:
        return name, socket.gethostbyname(name)
    except OSError:
        return name, name  # a host that cannot resolve its own name


def _names(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text) is not None
