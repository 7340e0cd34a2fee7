"""Settings of the preparation of rows. No heavy import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from data.prepare.conventions import (
    Layout,
    SourceSpace,
)
from stepstack.bounds import Text, Weight
from stepstack.config import Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeOptions(Strict):
    """How a source is to be read; numbers are verified against the pictures, a wrong convention is refused."""

    images: tuple[str, ...] = ()
    """Folders that hold the pictures; empty: the source's own."""
    space: SourceSpace | None = None
    """Space of the source's numbers: pixels, thousand (0 to 1000), percent (0 to 100, written as thousand) or unit
    (0 to 1); null: the one that the training numbers fit alone, of coco pixels."""
    layout: Layout | None = None
    """Order of a box's numbers in the source: two corners, or a corner, width and height; null: as that data set is
    published."""
    copy: bool = False
    """Whether pictures are copied into the prepared folder."""
    max_pixels: PositiveInt = 64_000_000
    """Most pixels of a picture; a row with a larger one is bad."""
    drop_bad: bool = False
    """Whether bad rows are left out and counted, instead of refusing all."""
    empty: Literal["refuse", "drop", "keep"] = "refuse"
    """Fate of a picture without any object (detection)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipOptions(Strict):
    """How videos become clips of a few sizes and lengths, the buckets."""

    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = ((544, 992), (992, 544), (768, 768))
    """Sizes (height, width) of the buckets in pixels; a video goes to that of the nearest shape."""
    lengths: tuple[PositiveInt, ...] = (1, 68, 102, 136, 204)
    """Lengths of the buckets in frames; a video goes to the longest that it fills."""
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Frames a second of the clips, taken by time; a slower video is refused; null: those of the videos, which must all
    have the same."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Least share of a picture that must be left when it is cropped to its size; with less the row is bad."""
    motion: tuple[Weight, Weight] = (0.0, 100.0)
    """Least and greatest motion score that stay; other clips are dropped and counted."""
    every: PositiveInt = 12
    """Frames from one of the motion score's flow to the next; ``every / fps`` seconds in all clips."""
    top: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the flow's vectors, the longest ones, whose mean length in pixels is the motion score."""
    root: str = ""
    """Folder that paths are relative to, and that videos lie below once links are followed; an empty string: the
    source's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFolder(Strict):
    """Short videos of your own with captions, as one folder. They become clips of one size and length, and stay in
    memory."""

    type: Literal["clips"] = "clips"
    """Choice of the data: a folder of videos of your own."""
    folder: Text
    """Folder of the videos and of a .jsonl file with their rows, {"video": name, "caption": text}; a row may have a
    "motion" score, or it is measured."""
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Frames a second of the clips, taken by time; null: those of the videos, which must all have the same."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Least share of a picture that must be left when it is cropped to the size of the clips."""
    held_out: PositiveInt = 2
    """Clips that nothing is trained on, drawn from the rows: they measure what was learned, and stand in the report."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.folder,)
