"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg in the forms of Perception-R1 and VLM-R1.

A row is ``{"image": path | {"bytes": ...}, "problem": expression, "solution": box}``. A box is a list of four numbers,
or such a list as text. Perception-R1's training rows have it in 0..1000. Its evaluation rows have pixels there and
0..1000 in "normalized_solution". VLM-R1's rows have pixels. ``space="thousand"`` takes "normalized_solution" where a
row has it. Where a row has both, they must agree. Without ``space`` the training boxes must fit one space alone.
"""

from __future__ import annotations

import dataclasses
import re
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

DATA = "refcoco"
FORM = '{"image": path, "problem": expression, "solution": [x1, y1, x2, y2]}'
NUMBER = r"\s*(-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*"
BOX = re.compile(rf"\s*[\[(]{NUMBER},{NUMBER},{NUMBER},{NUMBER}[\])]\s*")


def prepare(
    out: Path,
    source: str | Sequence[str],
    evals: Sequence[str],
    options: IntakeOptions,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Check ``source`` and ``evals`` (files, folders, hf:names; ``name=source``) and write the prepared folder ``out``.

    DataError for an ``options.space`` or ``.layout`` that is wrong or needed, or with up to 20 bad
    rows; nothing is written then.
    """
    options = dataclasses.replace(options, layout=options.layout or "xyxy")
    return intake.prepare(out, DATA, "grounding", source, evals, _row, options, overwrite=overwrite)


def load(place: Path, split: str, images: Sequence[str] = ()) -> list[Record]:
    """Grounding records of "train" or an eval: ``question`` is the expression, ``targets`` the one box."""
    return intake.load(place, split, DATA, images)


def box_numbers(value: Any, key: str) -> Numbers:
    """Four numbers of a box that is a list, or a list as text. BadRow names the key."""
    if isinstance(value, str) and (match := BOX.fullmatch(value)):
        return tuple(map(float, match.groups()))
    if (
        isinstance(value, Sequence)
        and len(value) == 4
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    ):
        return tuple(map(float, value))
    raise BadRow(f"key {key} is {str(value)[:60]!r}: must be four numbers, [x1, y1, x2, y2]")


def _row(raw: Any, space: SourceSpace | None) -> IntakeRow:
    expression = text_at(raw, "", ("problem",), FORM)
    if "image" not in raw or "solution" not in raw:
        raise BadRow(f"key {'solution' if 'image' in raw else 'image'} is missing: expected {FORM}")
    numbers, again, again_space = _boxes(raw, space)
    return IntakeRow(
        image=image_source(raw["image"]), question=expression, numbers=numbers, again=again, again_space=again_space
    )


def _boxes(
    raw: Mapping[str, Any], space: SourceSpace | None
) -> tuple[tuple[Numbers], tuple[Numbers, ...], SourceSpace]:
    """The box, the same box in another space, and that space. The second is empty where a row has only one box."""
    solution = box_numbers(raw["solution"], "solution")
    if raw.get("normalized_solution") is None or space not in (None, "pixels", "thousand"):
        return (solution,), (), "pixels"
    normalized = box_numbers(raw["normalized_solution"], "normalized_solution")
    if space != "pixels":
        return (normalized,), (solution,), "pixels"
    return (solution,), (normalized,), "thousand"
