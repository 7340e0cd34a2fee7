"""A moving average of weights, in float32, kept where the weights are: under FSDP each process has its own shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from stepstack.config import ConfigError


class Ema:
    """average <- d average + (1 - d) weights, after update n with d = min(decay, (1 + n) / (10 + n)), so that the first
    weights, which are random, are soon forgotten."""

    def __init__(self, parameters: Sequence[Tensor], decay: float):
        self.parameters, self.decay = list(parameters), decay
        self.averages = [_local(p).detach().float().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """``updates``: how many the weights have had, this one included."""
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(self.averages, [_local(p).float() for p in self.parameters], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Weights and average change places; a second call undoes the first exactly, where both are float32."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            weights = _local(parameter)
            trained = weights.detach().float().clone()
            weights.copy_(average)
            average.copy_(trained)

    def save(self, file: Path) -> None:
        save_file({str(i): average.cpu().contiguous() for i, average in enumerate(self.averages)}, file)

    def load(self, file: Path) -> None:
        """ConfigError where it was not saved, or by another number of processes."""
        if not file.is_file():
            raise ConfigError(
                f"{file} does not exist: the checkpoint has no moving average, or was written by fewer processes; "
                "resume with the number of processes it was written by"
            )
        saved = load_file(file)
        shapes = [list(saved[str(i)].shape) for i in range(len(saved))]
        if shapes != [list(average.shape) for average in self.averages]:
            raise ConfigError(f"{file} holds shards of other shapes: resume with the same number of processes")
        for i, average in enumerate(self.averages):
            average.copy_(saved[str(i)])


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.data
