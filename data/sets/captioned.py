"""Clips with captions that a run itself turns into latents: drawn ones and a user's own folder, as one kind of row."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from data.drawn import moving
from data.drawn.moving import Moving
from data.drawn.splits import Split
from data.errors import DataError
from data.media.frames import Frames, Size
from data.prepare.config import ClipFolder, ClipOptions
from data.prepare.manifest import read_source
from data.sets import clips as real
from stepstack.config import ROOT, ConfigError


@dataclass(frozen=True, slots=True)
class CaptionedClip:
    """Clip with its prompt and its motion score. ``name``: its identity in the results of an evaluation. ``frames``
    returns its pixels [F, Y, X, RGB]."""

    name: str
    prompt: str
    motion: float
    frames: Callable[[], Frames]


def captioned(data: Moving | ClipFolder, split: Split, count: int, size: Size) -> Sequence[CaptionedClip]:
    """Clips of a split, of ``count`` frames and a size where they are one's own, drawn ones as ``data`` says; of one's
    own all that are held out are ``select`` and ``test`` alike. ConfigError or DataError for unusable videos."""
    if isinstance(data, Moving):
        rows = moving.clips(data, split)
        return [CaptionedClip(c.write(), c.prompt, c.score, partial(moving.render, c, data)) for c in rows]
    train, held_out, _ = read_folder(data, count, size)
    return train if split == "train" else held_out


@lru_cache(maxsize=1)
def read_folder(data: ClipFolder, count: int, size: Size) -> tuple[list[CaptionedClip], list[CaptionedClip], float]:
    """(clips to train on, clips that are held out, their frames per second) of ``count`` frames and one size.

    The videos are decoded once a process. DataError with all bad rows; ConfigError where none is left to train on.
    """
    folder = next((place for place in (Path(data.folder), ROOT / data.folder) if place.is_dir()), None)
    if folder is None:
        raise DataError(f"data.folder={data.folder} is no folder: give the one that holds the videos and their .jsonl")
    options = ClipOptions(sizes=(size,), lengths=(count,), fps=data.fps, keep=data.keep, motion=(0.0, 1e6))
    decoded: list[real.Clip] = []
    _, fps = real.read_rows(list(read_source(str(folder)).rows), folder, options, decoded.append)
    rows = [
        CaptionedClip(str(clip.row.video), clip.row.caption, clip.motion, partial(_pixels, clip)) for clip in decoded
    ]
    if len(rows) <= data.held_out:
        raise ConfigError(
            f"{folder} has {len(rows)} different clips and data.held_out={data.held_out} of them are held out: none is "
            "left to train on, add videos or hold out fewer"
        )
    held_out = set(random.Random("held out").sample(range(len(rows)), data.held_out))
    train = [row for place, row in enumerate(rows) if place not in held_out]
    return train, [rows[place] for place in sorted(held_out)], fps


def _pixels(clip: real.Clip) -> Frames:
    return clip.pixels[0]
