"""Types that loops, parts and the run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from torch import Tensor


class ProcessGroup(Protocol):
    """The processes of a run, as the parts see them."""

    @property
    def rank(self) -> int: ...

    @property
    def processes(self) -> int: ...

    def gather(self, items: list) -> list:
        """Items of all processes in rank order, on every process."""
        ...


class SingleProcess:
    """A world of one process."""

    rank, processes = 0, 1

    def gather(self, items: list) -> list:
        return items


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOut:
    """The loss of one micro-batch. ``total`` and ``metrics`` are sums over what the loss is about: response tokens,
    videos, pairs; metrics whose names end in _max are maxima. ``count`` says how many those are, and metrics
    come out as means over them; ``work`` counts the tokens that went through the model, for FLOPs."""

    total: Tensor
    count: float
    work: float
    metrics: dict[str, Tensor] = field(default_factory=dict)
