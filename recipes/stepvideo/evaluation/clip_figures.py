"""`stepstack clips`: figures of a folder of video files as a set, by itself and beside true ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from data.errors import DataError
from data.media import frames
from data.media.frames import Frames, Size
from data.media.videos import read_video
from stepstack.models.video.features import SavedFeatures, clip_features
from stepstack.scoring.frechet import distance, gaussian

ENDINGS = (".avi", ".gif", ".mkv", ".mov", ".mp4", ".webm")


def files_in(folder: Path) -> list[Path]:
    """DataError where there are no videos."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    if not files:
        raise DataError(f"{folder} holds no videos ({', '.join(ENDINGS)}): give the folder they lie in")
    return files


def dynamic_degree(files: Sequence[Path]) -> float:
    """The share of clips that ``data.media.frames.is_dynamic`` finds to move."""
    return fmean(frames.is_dynamic(*read_video(file)) for file in files)


def frechet(
    files: Sequence[Path], true: Sequence[Path], features: SavedFeatures, count: int, size: Size
) -> dict[str, float]:
    """``distance`` to the true clips; ``true``, of their two halves: what true clips would have, or more, as halves are
    smaller sets. Of each clip the first ``count`` frames count, cropped and scaled to ``size``. DataError for a clip
    with fewer, and for fewer than two clips or four true ones."""
    if len(true) < 4 or len(files) < 2:
        raise DataError(
            f"{len(files)} clips and {len(true)} true ones: give two and four for a distance, many for a good one"
        )
    generated, reference = (clip_features(features, _starts(group, count, size)) for group in (files, true))
    return {
        "distance": distance(gaussian(generated), gaussian(reference)),
        "true": distance(gaussian(reference[::2]), gaussian(reference[1::2])),
    }


def _starts(files: Sequence[Path], count: int, size: Size) -> Iterator[Frames]:
    for file in files:
        video, _ = read_video(file, count)
        if len(video) < count:
            raise DataError(f"{file} has {len(video)} frames, {count} are compared: ask for fewer by --frames")
        yield frames.fit(video, size)
