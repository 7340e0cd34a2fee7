"""FSDP2 as accelerate does it, on CPU processes over gloo.

accelerate never enters FSDP on a CPU. This makes it believe in several accelerators, while every tensor stays on the
CPU; what then runs is real: fully_shard, optimizers of shards, checkpoints of shards, the broadcast of weights,
full_tensor.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from accelerate.state import DistributedType, PartialState

from stepstack.config import ROOT
from tests.system.processes import MINI, Ended, train_ranks


def on_cpu() -> None:
    """Hook of a training process: its launch file is fsdp2, its processes meet over gloo."""
    settings = yaml.safe_load((ROOT / "configs" / "launch" / "fsdp2.yaml").read_text())["fsdp_config"]
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for key, value in settings.items():
        os.environ[key.upper()] = str(value).lower() if isinstance(value, bool) else str(value)
    dist.init_process_group("gloo")
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def train(run: Path, count: int, *words: str, config: str = MINI, hooks: tuple = (), **how: Any) -> list[Ended]:
    """`stepstack train` of ``config`` in the folder ``run`` by ``count`` processes and FSDP2."""
    words = ("launch.file=fsdp2", *words)
    return train_ranks(run, count, *words, config=config, hooks=[(on_cpu,), *hooks], **how)


def with_base(whole: Path, run: Path) -> Path:
    """The folder of a run that holds the base model of another."""
    shutil.copytree(whole / "base" / "model", run / "base" / "model")
    return run
