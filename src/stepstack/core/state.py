"""Checkpoint of a role by torch.distributed.checkpoint: weights, optimizers, moving average.

Each process writes what it has into ``<folder>/<role>/``, and any number of processes reads it back.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from stepstack.config import ConfigError
from stepstack.core import stored, tree

if TYPE_CHECKING:
    from stepstack.core.trainable import Trainable

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process: said at every save

WEIGHTS, OPTIMIZERS, AVERAGE = "weights", "optimizers", "average"  # keys of a role's state


def state_of(trainable: Trainable) -> dict[str, Any]:
    """State of a role, tensors shared with it, under names that do not depend on how it is spread. A tied weight is
    there once. An optimizer that has not stepped has no state."""
    module = trainable.unwrapped
    state: dict[str, Any] = {
        WEIGHTS: weights(module),
        OPTIMIZERS: {
            str(i): get_optimizer_state_dict(module, optimizer)
            for i, optimizer in enumerate(trainable.optimizers)
            if optimizer.state
        },
    }
    if trainable.ema is not None:
        state[AVERAGE] = trainable.ema.state()
    return state


def _in_part(trainable: Trainable, state: dict[str, Any]) -> dict[str, Any]:
    """The state under the name of the part of the role that this process has."""
    return {trainable.part: state} if trainable.part else state


def weights(module: nn.Module) -> dict[str, Tensor]:
    """State dict of a module without the second names of tied weights."""
    once = dict(module.named_parameters())
    twice = dict(module.named_parameters(remove_duplicate=False)).keys() - once.keys()
    return {name: value for name, value in module.state_dict().items() if name not in twice}


def check_format(folder: Path, facts: Mapping[str, Any]) -> None:
    """ConfigError where a checkpoint, whose state.json is ``facts``, was written before roles had folders."""
    if "launch" not in facts:
        raise ConfigError(
            f"{folder} was written by an older stepstack: evaluate the model that its run exported, or train anew"
        )


def save(trainable: Trainable, folder: Path) -> None:
    """Every process calls it."""
    dcp.save(
        _in_part(trainable, state_of(trainable)),
        storage_writer=dcp.FileSystemWriter(folder),
        no_dist=not dist.is_initialized(),
    )


def begin_save(trainable: Trainable, folder: Path, group: dist.ProcessGroup | None) -> Future[Any]:
    """Like ``save``, of a copy in the host's memory, by a thread: when this returns, training may go on.

    ``group``: all processes over gloo, and nothing else is exchanged in it meanwhile; None for one process."""
    written = dcp.async_save(
        _in_part(trainable, state_of(trainable)),
        storage_writer=dcp.FileSystemWriter(folder),
        process_group=group,
        no_dist=group is None,
    )
    assert isinstance(written, Future)  # the copy is made before it returns
    return written


def load(trainable: Trainable, folder: Path) -> None:
    """Put a saved state into a role, in place. Every process calls it; there may be more or fewer than wrote it."""
    written = stored.CheckpointReader(folder).read_metadata().state_dict_metadata
    names = [name.removeprefix(f"{trainable.part}.") for name in written if name.startswith(trainable.part)]
    state: dict[str, Any] = {WEIGHTS: weights(trainable.unwrapped), OPTIMIZERS: {}}
    for i, optimizer in enumerate(trainable.optimizers):
        if any(name.startswith(f"{OPTIMIZERS}.{i}.") for name in names):
            fresh = get_optimizer_state_dict(trainable.unwrapped, optimizer)
            moments: Any = fresh["state"]
            for name in [n for n in moments if not any(k.startswith(f"{OPTIMIZERS}.{i}.state.{n}.") for k in names)]:
                del moments[name]  # a parameter that had no gradient yet
            state[OPTIMIZERS][str(i)] = fresh
    if trainable.ema is not None:
        state[AVERAGE] = trainable.ema.state()
    stored.load(_in_part(trainable, state), folder, no_dist=not dist.is_initialized())
    for i, saved in state[OPTIMIZERS].items():
        set_optimizer_state_dict(
            trainable.unwrapped, trainable.optimizers[int(i)], saved, options=StateDictOptions(strict=False)
        )


def save_random(folder: Path, rank: int) -> None:
    """Write the states of all sources of random numbers of this process."""
    numbers = np.random.get_state(legacy=False)
    numbers["state"]["key"] = torch.from_numpy(numbers["state"]["key"].astype(np.int64))
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = {"python": random.getstate(), "numpy": numbers, "torch": torch.get_rng_state(), "cuda": cuda}
    tree.write(states, folder, f"random-{rank:05d}")


def load_random(folder: Path, rank: int) -> None:
    """Put back what ``save_random`` wrote."""
    saved = tree.read(folder, f"random-{rank:05d}")
    random.setstate(saved["python"])
    numbers = saved["numpy"]
    numbers["state"]["key"] = numbers["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numbers)
    torch.set_rng_state(saved["torch"])
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
