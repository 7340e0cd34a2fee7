"""The processes that `accelerate launch` started, for whoever needs no Run."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import gather_object


class LaunchedProcesses:
    """``rl.types.World`` over accelerate: one process where it was not launched."""

    def __init__(self, threads: int = 1):
        """``threads``: of each process, on CPU."""
        self.state = PartialState(cpu=not torch.cuda.is_available())
        if self.device.type == "cpu":
            torch.set_num_threads(threads)

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
