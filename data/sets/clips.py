"""Real videos with captions: rows ``{"video": path, "caption": text}`` to latents in buckets of size and length.

All errors are reported together, and nothing is written then. A clip goes to the size of the nearest shape and to the
longest length that it has frames for. Its motion score is measured, or the row's "motion".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from data.errors import BadRow, DataError, refuse
from data.media import frames, videos
from data.media.frames import Frames, MotionOptions, Size
from data.media.paths import locate
from data.prepare.config import ClipOptions
from data.prepare.manifest import (
    MANIFEST,
    SCHEMA,
    Manifest,
    check_target,
    new_folder,
    read_source,
    text_at,
    write_synced,
)
from stepstack import __version__
from stepstack.diffusion.latents import LatentWriter
from stepstack.models.video.prompt_encoders import PromptEncoder
from stepstack.models.video.vae import VideoCodec

DATA = "clips"
FORM = '{"video": path, "caption": text}, of pairs also "loser": path'


@dataclass(frozen=True, slots=True)
class ClipRow:
    """Row whose files are there, not decoded yet. ``rates``: frames per second of the video, and of the loser.
    ``digest``: hash of the files."""

    place: str
    video: Path
    loser: Path | None
    caption: str
    motion: float | None
    rates: tuple[float, ...]
    digest: str

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.video,) if self.loser is None else (self.video, self.loser)


@dataclass(frozen=True, slots=True)
class Clip:
    """Decoded clip. ``pixels``: frames of the video, and of the loser, in the bucket's size."""

    row: ClipRow
    motion: float
    pixels: tuple[Frames, ...]

    @property
    def bucket(self) -> str:
        return " x ".join(map(str, self.pixels[0].shape[:3]))


def prepare(
    out: Path,
    source: str,
    options: ClipOptions,
    codec: VideoCodec,
    encoder: PromptEncoder,
    *,
    made_by: Mapping[str, Any],
    overwrite: bool = False,
) -> Manifest:
    """Write the prepared folder ``out``: latents, encoded captions, manifest. ``made_by`` names codec and encoder
    (``LatentWriter``).

    ``options.fps`` of the manifest is the clips' rate. DataError with up to 20 bad rows, for videos of several rates
    without ``options.fps``, or for buckets that the codec cannot encode; nothing is written then.
    """
    check_target(out, overwrite)
    for size in options.sizes:
        for length in options.lengths:
            try:
                codec.grid(length, *size)
            except ValueError as error:
                raise DataError(
                    f"data.options: a bucket of {length} frames of {size[1]} x {size[0]}: {error}"
                ) from None
    raw = read_source(source)
    with new_folder(out) as folder:
        writer = LatentWriter(folder, encoder, made_by)
        root = Path(options.root or Path(source).parent)
        counts, fps = read_rows(list(raw.rows), root, options, lambda clip: _encode(clip, codec, writer))
        writer.close()
        files = {file.name: describe_file(file) for file in sorted(folder.iterdir())}
        manifest = Manifest(
            schema=SCHEMA,
            stepstack=__version__,
            data=DATA,
            sources=[raw.record],
            evals={},
            options={**dataclasses.asdict(options), "fps": fps},
            counts={**counts, "cut_captions": dataclasses.asdict(writer.cut)},
            files=files,
        )
        text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
        write_synced(folder / MANIFEST, f"{text}\n".encode())
    return manifest


def read_rows(
    raw: Sequence[tuple[str, Any]], root: Path, options: ClipOptions, use: Callable[[Clip], None]
) -> tuple[dict[str, Any], float]:
    """Give each clip that stays to ``use``; the counts, and the clips' frames per second.

    What can be seen without decoding is looked at in all rows first. Each video is then decoded once; after the first
    bad row the rest are only checked. DataError with all bad rows.
    """
    parsed, errors = [], dict[int, str]()
    for number, (place, value) in track(list(enumerate(raw)), "reading", transient=True):
        try:
            parsed.append((number, parse_row(place, value, root, options)))
        except (BadRow, DataError) as error:
            errors[number] = f"{place}: {error}"
    fps = common_rate([row for _, row in parsed], options)
    kept: list[ClipRow] = []
    dropped, buckets, identities = Counter[str](), Counter[str](), set()
    for number, row in track(parsed, "clips", transient=True):
        if (row.digest, row.caption) in identities:
            dropped["duplicate"] += 1
            continue
        identities.add((row.digest, row.caption))
        try:
            clip = decode(row, options)
        except (BadRow, DataError) as error:
            errors[number] = f"{row.place}: {error}"
            continue
        if not options.motion[0] <= clip.motion <= options.motion[1]:
            dropped["motion"] += 1
            continue
        kept.append(row)
        buckets[clip.bucket] += 1
        if not errors:
            use(clip)
    refuse([errors[number] for number in sorted(errors)])
    if not kept:
        raise DataError(f"every clip was dropped ({dict(dropped)}): widen options.motion")
    return {"read": len(raw), "kept": len(kept), "dropped": dict(dropped), "buckets": dict(buckets)}, fps


def parse_row(place: str, value: Any, root: Path, options: ClipOptions) -> ClipRow:
    """Row with its files found. BadRow or DataError that names the fault."""
    caption, name = (text_at(value, "", (key,), FORM) for key in ("caption", "video"))
    if not caption.strip():
        raise BadRow("key caption is empty: describe the clip, or remove the row")
    names = [name, text_at(value, "", ("loser",), FORM)] if "loser" in value else [name]
    files = [find_video(name, root) for name in names]
    headers = [videos.read_header(file) for file in files]
    if options.fps is not None:
        for file, header in zip(files, headers, strict=True):
            videos.check_rate(file, header, options.fps)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    loser = files[1] if len(files) > 1 else None
    rates = tuple(header.rate for header in headers)
    return ClipRow(place, files[0], loser, caption.strip(), given_motion(value), rates, digest.hexdigest())


def find_video(name: str, root: Path) -> Path:
    found = locate(name, [root])
    if found is None:
        raise BadRow(
            f"the video {name} does not exist below {root.resolve()} (links are followed): put it there, or set "
            "options.root to the folder that holds it"
        )
    return found[1]


def given_motion(value: Mapping[str, Any]) -> float | None:
    motion = value.get("motion")
    if motion is None:
        return None
    if isinstance(motion, bool) or not isinstance(motion, int | float) or not np.isfinite(motion):
        raise BadRow(f"key motion is {motion!r}: must be a number, or absent to be measured")
    return float(motion)


def common_rate(rows: Sequence[ClipRow], options: ClipOptions) -> float:
    """Frames per second of the clips. DataError where rows have losers and others do not, or where videos of several
    rates would be read as if they had one."""
    alone = [row.place for row in rows if row.loser is None]
    if 0 < len(alone) < len(rows):
        raise DataError(
            f"{alone[0]}: key loser is missing, as in {len(alone)} of {len(rows)} rows: all have one, or none"
        )
    rates = [(rate, file) for row in rows for rate, file in zip(row.rates, row.files, strict=True)]
    if options.fps is not None or not rates:
        return options.fps or 0.0
    least, most = min(rates), max(rates)
    if most[0] > least[0] * (1 + videos.SAME_RATE):
        raise DataError(
            f"{least[1]} has {least[0]:g} frames a second, {most[1]} has {most[0]:g}: set data.options.fps, at most "
            f"{least[0]:g} for all of them, and frames are taken by time"
        )
    return most[0]


def decode(row: ClipRow, options: ClipOptions) -> Clip:
    """Clip in its bucket. BadRow or DataError for a video that fits none, or is not whole."""
    shown = [videos.read_video(file, max(options.lengths), options.fps)[0] for file in row.files]
    size = frames.nearest(shown[0].shape[1:3], options.sizes)
    length = min(bucket_length(file, video, size, options) for file, video in zip(row.files, shown, strict=True))
    motion = row.motion
    if motion is None:
        motion = frames.motion_score(shown[0][:length], MotionOptions(every=options.every, top=options.top))
    return Clip(row, motion, tuple(frames.fit(video[:length], size) for video in shown))


def bucket_length(file: Path, video: Frames, size: Size, options: ClipOptions) -> int:
    """Longest length that a video has frames for. BadRow where it has too few, or another shape than ``size``."""
    lengths = [length for length in options.lengths if length <= len(video)]
    if not lengths:
        least = min(options.lengths)
        raise BadRow(f"{file} has {len(video)} frames, the shortest of options.lengths is {least}: remove the row")
    if (left := frames.crop_fraction(video.shape[1:3], size)) < options.keep:
        raise BadRow(
            f"{file} is {video.shape[2]} x {video.shape[1]}: cropped to {size[1]} x {size[0]}, the nearest of "
            f"options.sizes, {left:.0%} of it would be left; add a size of its shape, or lower keep"
        )
    return max(lengths)


def _encode(clip: Clip, codec: VideoCodec, writer: LatentWriter) -> None:
    winner, *losers = [_tensor(pixels) for pixels in clip.pixels]
    latents, image = codec.encode(winner)[0], codec.encode(winner[:, :1])[0, 0]
    loser = codec.encode(losers[0])[0] if losers else None
    try:
        writer.add(latents, image, clip.motion, clip.row.caption, loser)
    except ValueError as error:
        raise DataError(f"{clip.row.place}: {clip.row.video}: {error}") from None


def _tensor(taken: Frames) -> Tensor:
    """Frames as the codec takes them, [1, F, C, Y, X] in [-1, 1]."""
    return torch.from_numpy(taken.copy()).permute(0, 3, 1, 2)[None].float() / 127.5 - 1


def describe_file(file: Path) -> dict[str, Any]:
    return {"split": "train", "rows": 0, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
