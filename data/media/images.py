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
from stepstack.scoring.vision.spatial import MAX_ASPECT, Space

# Errors of Pillow for bytes that are no picture, or only a part or a bomb of one.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
# Modes of more than 8 bits: what their numbers mean is not in the file, and Pillow would cut them at 255.
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


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
        return decode(content, self.path).image


@dataclass(frozen=True, slots=True)
class BytesPicture:
    """Encoded picture in memory; ``name`` is for errors."""

    content: bytes = field(repr=False)
    name: str = "bytes"

    def image(self) -> Image.Image:
        return decode(self.content, self.name).image


@dataclass(frozen=True, slots=True)
class Target:
    """Object: its label and its box or a point on it, in the record's space.

    ``area``: its area in square pixels of the stored picture, in any space; None: that of its box. ``crowd``: whether
    it is a region of many objects that nobody marked one by one, which a detection may neither find nor miss.
    """

    label: str
    box: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None
    area: float | None = None
    crowd: bool = False


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

    @property
    def objects(self) -> tuple[Target, ...]:
        """The targets that are no crowds, which are the ones to find."""
        return tuple(target for target in self.targets if not target.crowd)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Picture in RGB. ``over_white``: whether some of it was transparent, and white stands there now."""

    image: Image.Image
    over_white: bool


def decode(content: bytes, name: str, max_pixels: int | None = None) -> Decoded:
    """Picture turned by its EXIF orientation, on white where it is transparent.

    DataError names ``name`` and the reason: bytes that are no whole picture, more than ``max_pixels``, or samples of
    more than 8 bits, such as gray of 16 bits.
    """
    buffer = io.BytesIO(content)
    try:
        with Image.open(buffer) as image:
            why = _unfit(image, max_pixels)
            if why is None:
                return flat(ImageOps.exif_transpose(image))
    except BROKEN as error:
        reason = str(error).replace(repr(buffer), "its content")
        raise DataError(f"{name} is no whole picture ({reason}): get it again, or remove the row") from None
    raise DataError(f"{name} {why}")


def read_image(file: Path) -> Image.Image:
    """Picture in a file, decoded like all. DataError for a file that is missing or no picture."""
    if not file.is_file():
        raise DataError(f"{file} does not exist: correct the path, or put it there")
    return decode(file.read_bytes(), str(file)).image


def check_aspect(size: tuple[int, int], name: str) -> None:
    """DataError for a picture (width, height) that is longer than the models' image processors take."""
    if max(size) > MAX_ASPECT * min(size):
        raise DataError(
            f"{name} is {size[0]} x {size[1]}, beyond {MAX_ASPECT}:1, the most that the models take: cut it, or remove "
            "the row"
        )


def _unfit(image: Image.Image, max_pixels: int | None) -> str | None:
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        return (
            f"has {width} x {height} pixels, over max_pixels={max_pixels}: scale picture and boxes down, or raise "
            "max_pixels"
        )
    if image.mode in DEEP:
        return (
            f"has samples of more than 8 bits (mode {image.mode}): convert it to 8 bits, where you choose which values "
            "are black and white"
        )
    return None


def flat(image: Image.Image) -> Decoded:
    """Opened picture in RGB, on white where it is transparent."""
    if not image.has_transparency_data:
        return Decoded(image.convert("RGB"), over_white=False)
    full = image.convert("RGBA")
    clear = full.getchannel("A").getextrema() != (255, 255)
    ground = Image.new("RGBA", full.size, "white")
    return Decoded(Image.alpha_composite(ground, full).convert("RGB"), over_white=clear)


def image_source(value: Any, key: str = "image") -> str | bytes:
    """Path or bytes in an image cell, which is text or ``{"bytes": ..., "path": ...}``. BadRow for anything else."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str | bytes) or not value:
        raise BadRow(f'key {key} must be a path or {{"bytes": the encoded picture}}')
    return value


PerceptionTask = Literal["grounding", "counting", "ocr", "detection"]
