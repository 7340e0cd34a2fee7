"""Motion in a clip of one coloured form on grey: its track, direction and colour, and ``psnr`` of frames. No torch.

Clips are [frames, height, width, RGB], uint8 or floats in [0, 1]. Places are (x, y) in pixels from the upper left
corner, where the first pixel spans 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

MIN_SATURATION = 0.25  # saturation (largest minus smallest channel) below which a pixel counts as grey
MIN_FRAME_SATURATION = 4.0  # saturation summed over a frame, below which the form is absent
MIN_MOTION = 1.0  # pixels between first and last frame, below which there is no motion

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MotionTrack:
    """Track of the form. ``track``: [frames, 2], NaN where there is no form. ``colours``: the nearest known colour, or
    ""."""

    track: Floats
    colours: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not np.isnan(self.track).any()

    @property
    def moved(self) -> float:
        """Pixels between the first and the last place of the form; 0 where it is visible in fewer than two frames."""
        net = self._net()
        return float(np.hypot(*net))

    @property
    def direction(self) -> str | None:
        """Axis and sign of the net motion; None below a pixel."""
        x, y = self._net()
        if max(abs(x), abs(y)) < MIN_MOTION:
            return None
        if abs(x) >= abs(y):
            return "right" if x > 0 else "left"
        return "down" if y > 0 else "up"

    def _net(self) -> Floats:
        known = self.track[~np.isnan(self.track).any(1)]
        return known[-1] - known[0] if len(known) > 1 else np.zeros(2)


def track_motion(clip: NDArray, palette: Mapping[str, tuple[int, int, int]]) -> MotionTrack:
    """Track of the form by its saturation, with its colour in each frame. ValueError for an array that is no clip."""
    video = as_floats(clip)
    saturation = video.max(-1) - video.min(-1)
    weight = np.maximum(saturation - MIN_SATURATION, 0)
    mass = weight.sum((1, 2))
    gone = saturation.sum((1, 2), where=saturation > MIN_SATURATION) < MIN_FRAME_SATURATION
    rows, columns = (np.arange(n) + 0.5 for n in video.shape[1:3])
    with np.errstate(invalid="ignore", divide="ignore"):
        track = np.stack([(weight * columns).sum((1, 2)), (weight * rows[:, None]).sum((1, 2))], 1) / mass[:, None]
        mean = (weight[..., None] * video).sum((1, 2)) / mass[:, None]
    track[gone] = np.nan
    names, inks = list(palette), np.array(list(palette.values()), float)
    with np.errstate(invalid="ignore"):
        near = _chroma(mean) @ _chroma(inks).T
    return MotionTrack(
        track, tuple("" if lost else names[int(np.argmax(row))] for lost, row in zip(gone, near, strict=True))
    )


def as_floats(clip: NDArray) -> Floats:
    """Clip as floats in [0, 1]. ValueError for another shape or kind of numbers."""
    if clip.ndim != 4 or clip.shape[-1] != 3:
        raise ValueError(f"a clip must be [frames, height, width, 3], found {list(clip.shape)}")
    if clip.dtype == np.uint8:
        return clip / 255.0
    if not np.isfinite(clip).all():
        raise ValueError("a clip has pixels that are NaN or infinite: check the decoder")
    return clip.astype(np.float64)


def trajectory_error(track: Floats, true: Floats) -> float:
    """Mean distance between the tracks in pixels over the frames.

    A frame without a form counts as the width of the true track's square plus 8, so that losing the form never pays.
    """
    distance = np.hypot(*(track - true).T)
    span = float(np.ptp(true, axis=0).max()) + 8.0
    return float(np.where(np.isnan(distance), np.maximum(span, np.nanmax(distance, initial=0.0)), distance).mean())


def psnr(a: NDArray, b: NDArray) -> float:
    """Peak signal-to-noise ratio in dB of two clips or frames of one kind, peak 1 (255 for uint8); 100 where equal."""
    left, right = (x / 255.0 if x.dtype == np.uint8 else x.astype(np.float64) for x in (a, b))
    if left.shape != right.shape:
        raise ValueError(f"frames of shapes {list(left.shape)} and {list(right.shape)} differ: give equal shapes")
    error = float(np.mean((left - right) ** 2))
    return min(100.0, -10 * np.log10(error)) if error > 0 else 100.0


def straightness(track: Floats) -> float:
    """Net distance over length of the path: 1 for a straight line, and for a track without motion."""
    length = float(np.hypot(*np.diff(track, axis=0).T).sum())
    return float(np.hypot(*(track[-1] - track[0]))) / length if length > MIN_MOTION else 1.0


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman correlation with tied ranks averaged; None where one of the two does not vary."""
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 0 else None


def _chroma(rgb: Floats) -> Floats:
    """Unit directions of colours after their grey part is removed."""
    free = rgb - rgb.mean(-1, keepdims=True)
    return free / np.maximum(np.linalg.norm(free, axis=-1, keepdims=True), 1e-9)
