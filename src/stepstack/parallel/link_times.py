"""Times of messages between two processes of this machine."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stepstack.planning.timing import Link
from stepstack.report import jsonl

SIZES = tuple(4**power for power in range(6, 13))  # 4 KiB to 16 MiB
PATIENCE = timedelta(seconds=60)


def measure(sizes: Sequence[int] = SIZES, rounds: int = 5) -> Link:
    """Seconds of a message by its bytes over gloo, half of the median of ``rounds`` trips there and back."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_end, (folder, tuple(sizes), rounds), nprocs=2)
        seconds = json.loads((Path(folder) / "seconds.json").read_text())
    return Link(bytes=tuple(map(float, sizes)), seconds=tuple(accumulate(seconds, max)))


def _end(rank: int, folder: str, sizes: Sequence[int], rounds: int) -> None:
    """One of the two processes; the first one writes what it measured."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=PATIENCE)
    found = []
    for size in sizes:
        message = torch.zeros(size, dtype=torch.uint8)
        trips = [_trip(rank, message) for _ in range(rounds + 1)][1:]  # the first one connects
        found.append(median(trips) / 2)
    if rank == 0:
        jsonl.write_json_atomic(Path(folder) / "seconds.json", found)
    dist.barrier()
    dist.destroy_process_group()


def _trip(rank: int, message: torch.Tensor) -> float:
    began = time.perf_counter()
    for sender in (0, 1):
        if rank == sender:
            dist.send(message, 1 - rank)
        else:
            dist.recv(message, sender)
    return time.perf_counter() - began
