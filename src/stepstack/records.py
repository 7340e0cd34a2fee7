"""Small frozen records that every floor may use. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict of a reward or a metric about one answer.

    ``value`` is what the algorithm sees; ``parts`` are logged one by one and never enter the loss. ``answer`` is what
    was read out of the response (None: nothing). ``failure`` says why there is no verdict ("timeout", "error: ..."):
    training then takes ``value``, an evaluation counts the sample as failed.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    answer: str | None = None
    failure: str | None = None


class WrittenGold(Protocol):
    """A gold answer that is more than a text; files hold what ``write`` returns."""

    def write(self) -> str: ...


Gold = str | WrittenGold


def gold_text(gold: Gold) -> str:
    """A gold answer as a file holds it."""
    return gold if isinstance(gold, str) else gold.write()


@dataclass(frozen=True, slots=True)
class Problem:
    """One data row. ``index`` is its place in the prepared set: the group key, since texts may repeat. ``gold`` is what
    an answer is compared with: a text, or an object that knows how it is written."""

    index: int
    text: str
    gold: Gold
    meta: Mapping[str, Any] = field(default_factory=dict)


class Picture(Protocol):
    """A light, hashable reference to an image: rollouts carry it between processes, who needs the pixels opens it."""

    def image(self) -> Image: ...
