"""Counting data: PixMo-Count, in the forms of its own data set and of Perception-R1's files.

A row has the picture (``image`` or ``image_path``, or ``image_sha256`` with the file of that name below ``images``,
since the hub has addresses and not pictures). It has the counted label (``question`` or ``label``) and the count
(``ground_truth`` or ``count``). Training rows also have places: ``points`` or ``clicks``, a list of {"x", "y"} or of
[x, y], or ``{"x": [...], "y": [...]}``. PixMo-Count's points are pixels. Those of the related PixMo-Points are read as
percent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import BadRow
from data.media.images import Record, image_source
from data.prepare import intake
from data.prepare.config import IntakeOptions
from data.prepare.conventions import Numbers, SourceSpace
from data.prepare.intake import IntakeRow
from data.prepare.manifest import Manifest, text_at

DATA = "pixmo_count"
FORM = '{"image_path": path, "question": what, "ground_truth": how many, "points": [{"x": ..., "y": ...}, ...]}'
IMAGE = ("image", "image_path", "image_sha256")
LABEL = ("question", "label")
COUNT = ("ground_truth", "count")
POINTS = ("points", "clicks")


def prepare(
    out: Path,
    source: str | Sequence[str],
    evals: Sequence[str],
    options: IntakeOptions,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Check ``source`` and ``evals`` (files, folders, hf:names; ``name=source``) and write the prepared folder ``out``.

    An eval row may have a count alone. DataError for an ``options.space`` that is wrong or needed, or with up to 20 bad
    rows; nothing is written then.
    """
    options = dataclasses.replace(options, layout="xyxy")
    return intake.prepare(out, DATA, "counting", source, evals, _row, options, overwrite=overwrite)


def load(place: Path, split: str, images: Sequence[str] = ()) -> list[Record]:
    """Counting records of "train" or an eval: ``question`` is the counted label, ``targets`` its points if known."""
    return intake.load(place, split, DATA, images)


def _row(raw: Any, space: SourceSpace | None) -> IntakeRow:
    if not isinstance(raw, Mapping):
        raise BadRow(f"expected {FORM}, found {type(raw).__name__}")
    image = image_source(raw[_key(raw, IMAGE)], _key(raw, IMAGE))
    label = text_at(raw, "", (_key(raw, LABEL),), FORM)
    count = _count(raw[_key(raw, COUNT)], _key(raw, COUNT))
    key = next((key for key in POINTS if raw.get(key) is not None), None)
    return IntakeRow(image=image, question=label, count=count, numbers=() if key is None else _points(raw[key], key))


def _key(raw: Mapping[str, Any], keys: Sequence[str]) -> str:
    for key in keys:
        if raw.get(key) is not None:
            return key
    raise BadRow(f"key {' or '.join(keys)} is missing: expected {FORM}")


def _count(value: Any, key: str) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRow(f"key {key} is {value!r}: must be a whole number of objects")
    return value


def _points(value: Any, key: str) -> tuple[Numbers, ...]:
    if isinstance(value, Mapping) and {"x", "y"} <= value.keys() and len(value["x"]) == len(value["y"]):
        value = list(zip(value["x"], value["y"], strict=True))
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow(f"key {key} must be a list of points: expected {FORM}")
    return tuple(_point(point, f"{key}[{number}]") for number, point in enumerate(value))


def _point(value: Any, key: str) -> Numbers:
    pair = (value.get("x"), value.get("y")) if isinstance(value, Mapping) else value
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(number, int | float) for number in pair):
        raise BadRow(f'key {key} is {str(value)[:60]!r}: must be {{"x": ..., "y": ...}} or [x, y]')
    return float(pair[0]), float(pair[1])
