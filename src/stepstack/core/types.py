"""What loops, parts and the run have in common."""

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


@dataclass
class LossOut:
    """total: sum over tokens. metrics: sums over tokens, except names ending in _max; must hold "tokens"."""

    total: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
