"""Frames of videos: their shapes, their motion scores and the writers of files. The only module of imageio and OpenCV.

Frames are uint8 [F, Y, X, RGB].
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stepstack.report import jsonl

Frames = NDArray[np.uint8]
Size = tuple[int, int]  # height, width


def crop_fraction(size: Size, into: Size) -> float:
    """Fraction of a picture that is left when it is cropped to the shape of another one."""
    ratio = (size[1] / size[0]) / (into[1] / into[0])
    return min(ratio, 1 / ratio)


def nearest(size: Size, sizes: Sequence[Size]) -> Size:
    """Size that crops least. Of equal ones it is the one with the nearest area."""
    return max(sizes, key=lambda into: (crop_fraction(size, into), -abs(into[0] * into[1] - size[0] * size[1])))


def fit(frames: Frames, into: Size) -> Frames:
    """Frames scaled to cover ``into``, then cropped around the middle."""
    height, width = frames.shape[1:3]
    scale = max(into[0] / height, into[1] / width)
    size = (max(into[1], round(width * scale)), max(into[0], round(height * scale)))  # cv2 takes the width first
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    large = np.stack([cv2.resize(frame, size, interpolation=way) for frame in frames])
    top, left = (large.shape[1] - into[0]) // 2, (large.shape[2] - into[1]) // 2
    return large[:, top : top + into[0], left : left + into[1]]


def motion_score(frames: Frames, options: MotionOptions | None = None) -> float:
    """Mean length in pixels of the largest flow vectors (Farneback) between gray frames.

    A clip shorter than the distance is measured from its first to its last frame. A single frame does not move.
    """
    if len(frames) < 2:
        return 0.0
    options = options or MotionOptions()
    picked = list(frames[:: options.every])
    if len(picked) < 2:
        picked = [frames[0], frames[-1]]
    return float(np.mean(flow_lengths(picked, options.top)))


def flow_lengths(frames: Sequence[Frames], top: float = 0.05) -> list[float]:
    """Mean length in pixels of the longest flow vectors for each pair of neighbouring frames.

    The ``top`` fraction of the vectors counts (Farneback, between gray frames).
    """
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    means = []
    for a, b in pairwise(gray):
        flow = cv2.calcOpticalFlowFarneback(a, b, np.zeros((*a.shape, 2), np.float32), 0.5, 3, 15, 3, 5, 1.2, 0)
        lengths = np.sort(np.linalg.norm(flow, axis=-1).ravel())
        means.append(float(lengths[-max(1, round(top * lengths.size)) :].mean()))
    return means


def is_dynamic(frames: Frames, fps: float) -> bool:
    """Whether a clip moves, by the rule of VBench's dynamic degree (arXiv 2311.17982).

    Of frames 1/8 s apart a quarter, and at least one, must move to the next by more than 6 pixels for each 256 of the
    shorter side (more where a second has fewer than 8 frames). VBench takes RAFT's flow, this function Farneback's, so
    its results are not comparable with VBench's.
    """
    picked = frames[:: max(1, round(fps / 8))]
    threshold = max(1.0, 8 / fps) * 6 * min(frames.shape[1:3]) / 256
    moving = sum(length > threshold for length in flow_lengths(list(picked)))
    return moving >= max(1, round(len(picked) / 4))


def write_mp4(file: Path, frames: Frames, fps: float, scale: int = 1) -> Path:
    """Write ``mp4`` to a file, atomically."""
    jsonl.write_bytes_atomic(file, mp4(frames, fps, scale))
    return file


def mp4(frames: Frames, fps: float, scale: int = 1) -> bytes:
    """H.264 video as bytes; ``scale`` repeats pixels. Odd sizes lose a row or column because the codec halves
    colours."""
    large = frames.repeat(scale, 1).repeat(scale, 2)
    even = large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]
    return imageio.imwrite(
        "<bytes>", even, extension=".mp4", plugin="FFMPEG", fps=fps, codec="libx264", macro_block_size=1, quality=9
    )


def gif(frames: Frames, fps: float = 6, scale: int = 1) -> bytes:
    """Endless GIF as bytes; ``scale`` repeats pixels. A GIF counts time in hundredths of a second, so ``fps`` is
    rounded to a whole number of them."""
    images = [Image.fromarray(frame.repeat(scale, 0).repeat(scale, 1)) for frame in frames]
    out = io.BytesIO()
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], duration=10 * round(100 / fps), loop=0)
    return out.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionOptions:
    """Options of the motion score: flow between frames ``every`` apart, like in Step-Video-TI2V.

    The ``top`` fraction of the longest vectors of each flow counts. (The report states that the largest count, not how
    many.)
    """

    every: int = 12
    top: float = 0.05
