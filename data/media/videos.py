"""The only reader of video files: frames at a known, constant rate, no more of them than are asked for.

ffmpeg (of imageio-ffmpeg) decodes; GIFs are read by Pillow, which knows their transparency. Frames are uint8 [F, Y, X,
RGB], upright, with square pixels.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import IO

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, ImageSequence

from data.errors import DataError
from data.media.frames import Frames
from data.media.images import BROKEN, flat

SAME_RATE = 0.01  # rates that differ by no more than this share are one, such as 29.97 and 30
MAX_LACKING = 2  # frames that a whole file may have fewer than its duration says, which is rounded
GIF_DELAY = 100  # milliseconds of a GIF's frame that says 0, as browsers show it


@dataclass(frozen=True, slots=True)
class Header:
    """Facts of a video file. ``rate``: frames per second. ``frames``: number of them by its duration, if it says that.

    ``varies``: whether frames come at varying distances, so that ``rate`` is a mean. ``square``: whether pixels are.
    ``sound``: whether there is an audio track, which may be the longer one.
    """

    rate: float
    frames: float | None = None
    varies: bool = False
    square: bool = True
    sound: bool = False


def read_header(file: Path) -> Header:
    """Facts of a file, without decoding it. DataError for a file that is missing or no video."""
    if not file.is_file():
        raise DataError(f"{file} does not exist: correct the path, or put it there")
    if _is_gif(file):
        return Header(_gif(file)[0])
    command = [get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-i", f"file:{file.resolve()}"]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    text = said.stderr.decode(errors="replace")
    streams = re.findall(r"Stream #\S+ (Video|Audio): (.*)|Stream #\S+(?:\(\S*\))?: (Video|Audio): (.*)", text)
    kinds = [(a or c, b or d) for a, b, c, d in streams]
    moving = [line for kind, line in kinds if kind == "Video" and "(attached pic)" not in line]
    sound = any(kind == "Audio" for kind, _ in kinds)
    if not moving:
        if sound:
            raise DataError(f"{file} holds sound and no video: give the video, or remove the row")
        raise DataError(f"{file} cannot be read as a video ({_reason(text)}): get it again, or convert it")
    return _header(file, moving[0], text, sound)


def read_video(file: Path, count: int | None = None, fps: float | None = None) -> tuple[Frames, float]:
    """Frames, the first ``count`` of them at most (None: all), and the frames per second.

    With ``fps`` they are the ones that are shown at 0, 1 / fps, 2 / fps, ... seconds. DataError for a file that is
    missing or no video, is slower than ``fps``, or ends before what it says and what is asked for.
    """
    header = read_header(file)
    every = 1.0
    if fps is not None and abs(header.rate / fps - 1) > SAME_RATE:
        check_rate(file, header, fps)
        every = header.rate / fps
    taken, pixels, shape = 0, bytearray(), (0, 0)
    source = _gif(file)[1] if _is_gif(file) else _decoded(file, header, _needed(count, every))
    for place, frame in enumerate(source):
        if place == math.floor(taken * every + 1e-6):
            pixels += frame.tobytes()
            taken, shape = taken + 1, frame.shape[:2]
        if taken == count:
            break
    if not taken:
        raise DataError(f"{file} has no frame that can be decoded: get it again, or convert it")
    return np.frombuffer(pixels, np.uint8).reshape(taken, *shape, 3), header.rate if fps is None else fps


def check_rate(file: Path, header: Header, fps: float) -> None:
    """DataError for a video of fewer frames a second than ``fps``."""
    if header.rate < fps * (1 - SAME_RATE):
        raise DataError(
            f"{file} has {header.rate:g} frames a second, fewer than fps={fps:g}: frames that are not there cannot be "
            "made up: lower fps, or remove the row"
        )


def _needed(count: int | None, every: float) -> int | None:
    """Number of frames of the file in which ``count`` taken ones lie."""
    return None if count is None else math.floor((count - 1) * every + 1e-6) + 1


def _header(file: Path, line: str, text: str, sound: bool) -> Header:
    mean, base = (_number(line, unit) for unit in ("fps", "tbr"))
    rate = mean or base
    if not rate:
        raise DataError(f"{file} does not say its frames a second: convert it")
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", text)
    seconds = [float(part) for part in length.groups()] if length else []
    if (lacking := _riff_lacks(file)) > 0:
        raise DataError(f"{file} lacks {lacking} of the bytes that it says it has: get it again")
    frames = (seconds[0] * 3600 + seconds[1] * 60 + seconds[2]) * rate if seconds else None
    varies = base is not None and abs(rate / base - 1) > SAME_RATE
    shape = re.search(r"SAR (\d+):(\d+)", line)
    wide = int(shape[1]) / int(shape[2]) if shape and int(shape[1]) and int(shape[2]) else 1.0
    return Header(rate, frames, varies, square=abs(wide - 1) <= SAME_RATE, sound=sound)


def _number(line: str, unit: str) -> float | None:
    match = re.search(rf"([\d.]+)(k?) {unit}\b", line)
    return float(match[1]) * (1000 if match[2] else 1) if match else None


def _decoded(file: Path, header: Header, count: int | None) -> Iterator[Frames]:
    """Frames one by one, at the header's rate."""
    filters = [f"fps={header.rate}"] * header.varies + ["scale=round(iw*sar):ih"] * (not header.square)
    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", f"file:{file.resolve()}", "-map", "0:V:0"]
    command += ["-vf", ",".join(filters)] if filters else []
    command += ["-frames:v", str(count)] if count is not None else []
    command += ["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
    seen = 0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout is not None
        try:
            while (frame := _ppm(process.stdout)) is not None:
                seen += 1
                yield frame
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
        log.seek(0)
        errors = log.read().decode(errors="replace")
    wanted = math.inf if count is None else count
    if header.frames is None or seen >= min(wanted, header.frames - MAX_LACKING):
        return
    if errors.strip() or not header.sound:  # else the sound may be what is longer
        why = f" ({_reason(errors)})" if errors.strip() else ""
        raise DataError(
            f"{file} says that it has {header.frames:.0f} frames and ends after {seen}{why}: get it again, or cut "
            "it to what is there"
        )


def _ppm(stream: IO[bytes]) -> Frames | None:
    """Next picture of a stream of PPM; None at its end, also where the last one is cut off."""
    if stream.readline() != b"P6\n":
        return None
    width, height = map(int, stream.readline().split())
    stream.readline()  # the largest value, 255
    content = stream.read(width * height * 3)
    if len(content) < width * height * 3:
        return None
    return np.frombuffer(content, np.uint8).reshape(height, width, 3)


def _riff_lacks(file: Path) -> int:
    """Bytes that a RIFF file, such as AVI, is short of what its head says; ffmpeg takes what is there for the whole."""
    with file.open("rb") as stream:
        head = stream.read(8)
    return int.from_bytes(head[4:], "little") + 8 - file.stat().st_size if head.startswith(b"RIFF") else 0


def _is_gif(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"GIF8"


def _gif(file: Path) -> tuple[float, Iterator[Frames]]:
    """Frames per second and frames of a GIF. A frame that is shown longer than others is repeated."""
    try:
        with Image.open(file) as image:
            delays = [frame.info.get("duration", 0) or GIF_DELAY for frame in ImageSequence.Iterator(image)]
    except BROKEN as error:
        raise DataError(f"{file} is no whole GIF ({error}): get it again, or convert it") from None
    if not file.read_bytes().rstrip(b"\0").endswith(b";"):
        raise DataError(f"{file} ends early, after {len(delays)} frames: get it again, or convert it")
    step = reduce(math.gcd, (round(delay) for delay in delays))
    return 1000 / step, _gif_frames(file, [round(delay) // step for delay in delays])


def _gif_frames(file: Path, times: list[int]) -> Iterator[Frames]:
    with Image.open(file) as image:
        for frame, repeated in zip(ImageSequence.Iterator(image), times, strict=True):
            shown = np.asarray(flat(frame).image)
            for _ in range(repeated):
                yield shown


def _reason(text: str) -> str:
    """First of ffmpeg's messages about an error, without the part of ffmpeg that gives it."""
    lines = [re.sub(r"^\[.*?\]\s*", "", line).strip() for line in text.splitlines()]
    telling = [line for line in lines if re.search("error|invalid|not found|partial|ended", line, re.IGNORECASE)]
    return next(iter([*telling, *filter(None, lines)]), "ffmpeg gives no reason")
