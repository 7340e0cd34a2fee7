"""A moving average of weights, in float32, kept where the weights are: under FSDP each process has its own shards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


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

    def state(self) -> dict[str, Tensor]:
        """The averages, spread like the weights; memory is shared."""
        return {
            str(i): _like(average, parameter)
            for i, (average, parameter) in enumerate(zip(self.averages, self.parameters, strict=True))
        }


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.data


def _like(local: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return local
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(local, parameter.device_mesh, parameter.placements, shape=shape, stride=stride)
