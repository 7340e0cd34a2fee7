"""Papers with figures, and what a summary of one is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from stepstack.records import Picture
from stepstack.scoring.documents import SummaryGold

FIGURE = "\ufffc"  # stands in a text for a figure (Unicode's object replacement character)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a paper. ``size``: (width, height) in pixels."""

    idx: str
    picture: Picture
    caption: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Document:
    """A paper as markdown in which each figure is its idx tag and ``FIGURE``, in the order of ``figures``; and its
    reference summary."""

    index: int
    name: str
    text: str
    figures: tuple[Figure, ...]
    gold: SummaryGold
