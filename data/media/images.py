"""References to images, the records of perception data, and the only reader of image files."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageOps

from data.errors import BadRow, DataError
from stepstack.records import Picture
from stepstack.scoring.vision.spatial import Space

# Errors of Pillow for bytes that are no picture, or only a part or a bomb of one.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class FilePicture:
    """Picture in a file. ``sha256`` of the file is checked at each reading; "" where it is not known."""

    path: str
    sha256: str = ""

    def image(self) -> Image.Image:
        path = Path(self.path)
        if not path.is_file():
            raise DataError(f"{path} does not exist: set images to the folders that hold the pictures now")
        content = path.read_bytes()
        if self.sha256 and (digest := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise DataError(
                f"{path}: sha256 is {digest}, it was {self.sha256} when the data was prepared: prepare it again"
            )
        return decode(content, self.path)


@dataclass(frozen=True, slots=True)
class BytesPicture:
    """Encoded picture in memory; ``name`` is for errors."""

    content: bytes = field(repr=False)
    name: str = "bytes"

    def image(self) -> Image.Image:
        return decode(self.content, self.name)


@dataclass(frozen=True, slots=True)
class Target:
    """Object: its label and its box or a point on it, in the record's space."""

    label: str
    box: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One question about pictures and its gold.

    ``question`` fills the prompt's slot: the expression of grounding, the label that is counted, the category names of
    detection with ", " between them, "" for ocr. ``text``: gold of ocr. ``count``: gold of counting, also where an
    evaluation set gives no ``targets``. ``size``: (width, height) in pixels of the first picture.
    """

    index: int
    task: PerceptionTask
    pictures: tuple[Picture, ...]
    question: str
    targets: tuple[Target, ...]
    space: Space
    size: tuple[int, int]
    text: str = ""
    count: int | None = None


def decode(content: bytes, name: str, max_pixels: int | None = None) -> Image.Image:
    """Picture in RGB, turned by its EXIF orientation. DataError names ``name`` and the reason."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            fits = max_pixels is None or width * height <= max_pixels
            if fits:
                return ImageOps.exif_transpose(image).convert("RGB")
    except BROKEN as error:
        why = str(error).replace(repr(content), "the content")
        raise DataError(f"{name} is no whole picture ({why}): get it again, or remove the row") from None
    raise DataError(
        f"{name} has {width} x {height} pixels, over max_pixels={max_pixels}: scale picture and boxes down, or raise "
        "max_pixels"
    )


def image_source(value: Any, key: str = "image") -> str | bytes:
    """Path or bytes in an image cell, which is text or ``{"bytes": ..., "path": ...}``. BadRow for anything else."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str | bytes) or not value:
        raise BadRow(f'key {key} must be a path or {{"bytes": the encoded picture}}')
    return value


PerceptionTask = Literal["grounding", "counting", "ocr", "detection"]
