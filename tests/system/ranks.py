"""A function in several processes that talk over gloo, as torchrun would start them; each returns what it found."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

from tests.system.processes import _SERVER

LIMIT = 60  # seconds for all ranks; those that hang are killed


def run(folder: Path, count: int, function: Callable[..., Any], *arguments: Any, limit: float = LIMIT) -> list[Any]:
    """``function(rank, *arguments)`` on each of ``count`` ranks; what it returns, in the order of ranks."""
    folder.mkdir(parents=True)
    ranks = [_SERVER.Process(target=_rank, args=(folder, count, rank, function, arguments)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    end = monotonic() + limit
    for rank in ranks:
        rank.join(max(0.0, end - monotonic()))
    late = [number for number, rank in enumerate(ranks) if rank.is_alive()]
    for number in late:
        ranks[number].kill()
        ranks[number].join()
    failed = "\n".join(file.read_text() for file in sorted(folder.glob("*.error")))
    assert not failed, failed
    assert not late, f"ranks {late} still ran after {limit} s"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _rank(folder: Path, count: int, rank: int, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=count, timeout=timedelta(seconds=LIMIT / 2)
    )
    try:
        torch.save(function(rank, *arguments), folder / f"{rank}.pt")
    except BaseException:  # the test that waits shows it
        (folder / f"{rank}.error").write_text(f"rank {rank}\n{traceback.format_exc()}")
        raise
    dist.destroy_process_group()
