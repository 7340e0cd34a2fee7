"""Pages of text to read: PageOCR in the form of Perception-R1.

A row is ``{"image": path | {"bytes": ...}, "conversations": [{...}, {"value": the text}]}``: the first turn is the
question, the second the text of the page.
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
from data.prepare.conventions import SourceSpace
from data.prepare.intake import IntakeRow
from data.prepare.manifest import Manifest, text_at

DATA = "page_ocr"
FORM = '{"image": path, "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": the text}]}'


def prepare(
    out: Path,
    source: str | Sequence[str],
    evals: Sequence[str],
    options: IntakeOptions,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Check ``source`` and ``evals`` (files, folders, hf:names; ``name=source``) and write the prepared folder ``out``.

    DataError with up to 20 bad rows; nothing is written then. The options of numbers have no effect.
    """
    options = dataclasses.replace(options, space="pixels", layout="xyxy")
    return intake.prepare(out, DATA, "ocr", source, evals, _row, options, question="", overwrite=overwrite)


def load(place: Path, split: str, images: Sequence[str] = ()) -> list[Record]:
    """OCR records of "train" or an eval: ``text`` is the gold, ``question`` is empty."""
    return intake.load(place, split, DATA, images)


def _row(raw: Any, space: SourceSpace | None) -> IntakeRow:
    if not isinstance(raw, Mapping) or "image" not in raw:
        raise BadRow(f"key image is missing: expected {FORM}")
    turns = raw.get("conversations")
    if not isinstance(turns, Sequence) or len(turns) != 2:
        raise BadRow(f"key conversations must be a list of two turns: expected {FORM}")
    return IntakeRow(image=image_source(raw["image"]), text=text_at(turns[1], "conversations[1]", ("value",), FORM))
