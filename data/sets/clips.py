"""Real videos with captions: rows ``{"video": path, "caption": text}`` to latents in buckets of size and length.

Each row is checked before anything is encoded, and all errors are reported together. A clip goes to the size of the
nearest shape and to the longest length that it has frames for. Its motion score is measured, or the row's "motion".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from data.errors import BadRow, DataError
from data.media import frames
from data.media.frames import Frames, MotionOptions, Size
from data.prepare.config import ClipOptions
from data.prepare.manifest import (
    MANIFEST,
    SCHEMA,
    Manifest,
    check_target,
    new_folder,
    read_source,
    refuse,
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
    """Checked clip. ``length``: number of frames that are taken, from the first. ``digest``: hash of the files."""

    place: str
    video: Path
    loser: Path | None
    caption: str
    motion: float
    size: Size
    length: int
    digest: str


def prepare(
    out: Path, source: str, options: ClipOptions, codec: VideoCodec, encoder: PromptEncoder, *, overwrite: bool = False
) -> Manifest:
    """Write the prepared folder ``out``: latents, encoded captions, manifest.

    DataError with up to 20 bad rows, or for buckets that the codec cannot encode; nothing is written then.
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
    rows, counts = check_rows(list(raw.rows), Path(options.root or Path(source).parent), options)
    with new_folder(out) as folder:
        writer = LatentWriter(folder, encoder)
        for row in track(rows, "encoding", transient=True):
            pixels = read_pixels(row.video, row)
            latents, image = codec.encode(pixels)[0], codec.encode(pixels[:, :1])[0, 0]
            loser = None if row.loser is None else codec.encode(read_pixels(row.loser, row))[0]
            try:
                writer.add(latents, image, row.motion, row.caption, loser)
            except ValueError as error:
                raise DataError(f"{row.place}: {row.video}: {error}") from None
        writer.close()
        files = {file.name: describe_file(file) for file in sorted(folder.iterdir())}
        manifest = Manifest(
            schema=SCHEMA,
            stepstack=__version__,
            data=DATA,
            sources=[raw.record],
            evals={},
            options=dataclasses.asdict(options),
            counts=counts,
            files=files,
        )
        text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
        write_synced(folder / MANIFEST, f"{text}\n".encode())
    return manifest


def check_rows(
    raw: Sequence[tuple[str, Any]], root: Path, options: ClipOptions
) -> tuple[list[ClipRow], dict[str, Any]]:
    """Rows that stay, and the counts. DataError with all bad rows."""
    rows, errors, dropped, identities = [], [], Counter[str](), set()
    for place, value in track(raw, "reading", transient=True):
        try:
            row = parse_row(place, value, root, options)
        except (BadRow, DataError) as error:
            errors.append(f"{place}: {error}")
            continue
        if (row.digest, row.caption) in identities:
            dropped["duplicate"] += 1
        elif not options.motion[0] <= row.motion <= options.motion[1]:
            dropped["motion"] += 1
        else:
            rows.append(row)
        identities.add((row.digest, row.caption))
    refuse(errors)
    alone = [row.place for row in rows if row.loser is None]
    if 0 < len(alone) < len(rows):
        raise DataError(
            f"{alone[0]}: key loser is missing, as in {len(alone)} of {len(rows)} rows: all have one, or none"
        )
    if not rows:
        raise DataError(f"every clip was dropped ({dict(dropped)}): widen options.motion")
    buckets = Counter(f"{row.length} x {row.size[0]} x {row.size[1]}" for row in rows)
    return rows, {"read": len(raw), "kept": len(rows), "dropped": dict(dropped), "buckets": dict(buckets)}


def parse_row(place: str, value: Any, root: Path, options: ClipOptions) -> ClipRow:
    """Checked clip of a row. BadRow or DataError that names the fault."""
    caption, name = (text_at(value, "", (key,), FORM) for key in ("caption", "video"))
    if not caption.strip():
        raise BadRow("key caption is empty: describe the clip, or remove the row")
    file = root / name
    video, _ = frames.read_video(file)
    loser = root / text_at(value, "", ("loser",), FORM) if "loser" in value else None
    size = frames.nearest(video.shape[1:3], options.sizes)
    length = bucket_length(file, video, size, options)
    if loser is not None:
        length = min(length, bucket_length(loser, frames.read_video(loser)[0], size, options))
    score = row_motion(value, video[:length], options)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (file, loser) if path)).hexdigest()
    return ClipRow(place, file, loser, caption.strip(), score, size, length, digest)


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


def row_motion(value: Mapping[str, Any], video: Frames, options: ClipOptions) -> float:
    motion = value.get("motion")
    if motion is None:
        return frames.motion_score(video, MotionOptions(every=options.every, top=options.top))
    if isinstance(motion, bool) or not isinstance(motion, int | float) or not np.isfinite(motion):
        raise BadRow(f"key motion is {motion!r}: must be a number, or absent to be measured")
    return float(motion)


def read_pixels(file: Path, row: ClipRow) -> Tensor:
    """Frames of a clip in its bucket's size, [1, F, C, Y, X] in [-1, 1]."""
    taken = frames.fit(frames.read_video(file)[0][: row.length], row.size)
    return torch.from_numpy(taken.copy()).permute(0, 3, 1, 2)[None].float() / 127.5 - 1


def describe_file(file: Path) -> dict[str, Any]:
    return {"split": "train", "rows": 0, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
