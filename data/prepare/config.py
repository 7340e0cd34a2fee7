"""Settings of the preparation of rows. No heavy import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from data.prepare.conventions import (
    Layout,
    SourceSpace,
)
from stepstack.config import Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeOptions(Strict):
    """How a source is to be read; numbers are verified against the pictures, a wrong convention is refused.

    ``space`` and ``layout`` of its numbers (None: as that data set is published); "percent" is 0..100, written as
    "thousand". ``images``: folders that hold the pictures (empty: the source's own). ``copy`` them into the prepared
    folder. ``drop_bad``: leave bad rows out and count them, instead of refusing all. ``empty``: what to do with a
    picture without any object (detection).
    """

    images: tuple[str, ...] = ()
    space: SourceSpace | None = None
    layout: Layout | None = None
    copy: bool = False
    max_pixels: PositiveInt = 64_000_000
    drop_bad: bool = False
    empty: Literal["refuse", "drop", "keep"] = "refuse"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipOptions(Strict):
    """``sizes`` (height, width) and ``lengths`` in frames: the buckets. ``keep``: the least share of a picture that
    must be left when it is cropped to its size. ``motion``: scores within it stay, others are dropped and counted.
    ``every`` and ``top``: of the motion score. ``root``: what paths are relative to; the source's folder if empty."""

    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = ((544, 992), (992, 544), (768, 768))
    lengths: tuple[PositiveInt, ...] = (1, 68, 102, 136, 204)
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    motion: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 100.0)
    every: PositiveInt = 12
    top: Annotated[float, Field(gt=0, le=1)] = 0.05
    root: str = ""
