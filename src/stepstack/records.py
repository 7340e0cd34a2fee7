"""Small frozen records that every floor may use. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward or a metric says of one rollout.

    ``value`` is what the algorithm sees; ``parts`` are logged one by one and never enter the loss. ``answer`` is what
    was read out of the response (None: nothing). ``failure`` says why there is no verdict ("timeout", "error: ..."):
    training then takes ``value``, an evaluation counts the sample as failed.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    answer: str | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One data row. ``index`` is its place in the prepared set: the group key, since texts may repeat."""

    index: int
    text: str
    gold: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class Picture(Protocol):
    """A light, hashable reference to an image: rollouts carry it between processes, who needs the pixels opens it."""

    def image(self) -> Image: ...
