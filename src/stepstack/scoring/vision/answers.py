"""Readers and writers of boxes and points in the texts of models. No torch.

Readers return (items, well-formed). They read any text without raising, in time linear in it. An answer is well-formed
if the whole text is such an answer and nothing else, except white space and an end-of-turn token. Items are returned
even where it is not. Numbers are taken unchanged: the caller knows their space, and nothing is guessed from the text.
(Perception-R1's released reward multiplies by 1000 where ``<|box_start|>`` is missing.)
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stepstack.scoring.vision.spatial import Box, Point

REF, REF_END = "<|object_ref_start|>", "<|object_ref_end|>"
BOX, BOX_END = "<|box_start|>", "<|box_end|>"
THINK, THINK_END, ANSWER, ANSWER_END = "<think>", "</think>", "<answer>", "</answer>"
ENDS = ("<|im_end|>", "<|endoftext|>")

Form = Literal["tokens", "json", "plain"]  # how boxes are written

MAX_COORDINATE = 1e9  # a larger number is no coordinate: products of two must stay finite
_NUMBER = r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?"  # bounded, so that no search rereads a long row of digits
_COMMA = r" ?, ?"
_PAIR = rf"\( ?({_NUMBER}){_COMMA}({_NUMBER}) ?\)"
_CORNERS = rf"{_PAIR}{_COMMA}{_PAIR}"
_FOUR = _COMMA.join([rf"({_NUMBER})"] * 4)
# A label ends before any next special token, so that an unclosed one is not read twice. Not possessive (``*+``): before
# 3.11.5 Python matches a possessive group wrongly.
_TOKENS = re.compile(
    rf"{re.escape(REF)}(?P<label>[^<]*(?:<(?!\|)[^<]*)*){re.escape(REF_END)}"
    rf"|{re.escape(BOX)} ?{_CORNERS} ?{re.escape(BOX_END)}"
)
_PLAIN = (re.compile(rf"\[ ?{_FOUR} ?\]"), re.compile(rf"\( ?{_FOUR} ?\)"), re.compile(_CORNERS))
_ANY_PLAIN = re.compile("|".join(pattern.pattern for pattern in _PLAIN))
_POINT = re.compile(_PAIR)
_FENCE = re.compile(r"```(?:json)?")
_OBJECT = re.compile(r"\{[^{}]{1,2000}\}")


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """Box, and its label in the text (None where there is none)."""

    box: Box
    label: str | None = None


def boxes(text: str, form: Form) -> tuple[list[LabelledBox], bool]:
    """Boxes by the reader of a form."""
    match form:
        case "tokens":
            return token_boxes(text)
        case "json":
            return json_boxes(text)
        case "plain":
            return plain_boxes(text)


def token_boxes(text: str) -> tuple[list[LabelledBox], bool]:
    """Boxes of Qwen2-VL: ``<|object_ref_start|>label<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>``, any
    number.

    A label names all boxes up to the next label; a box may have none. Well-formed: only these, one after another, and
    each label with a box. Empty text is well-formed too and means that there is no box.
    """
    text = strip_end_token(text)
    items: list[LabelledBox] = []
    label, unused, well, at = None, False, True, 0
    for match in _TOKENS.finditer(text):
        well &= not text[at : match.start()].strip()
        at = match.end()
        if match["label"] is not None:
            well &= not unused
            label, unused = match["label"].strip(), True
        else:
            items.append(LabelledBox(_box(match.groups()[1:]), label))
            unused = False
    return items, well and not unused and not text[at:].strip()


def json_boxes(text: str) -> tuple[list[LabelledBox], bool]:
    """Boxes of Qwen2.5-VL: a JSON list of ``{"bbox_2d": [x1, y1, x2, y2], "label": "..."}``, in a ```json fence or not.

    With a fence, the list is the content of the first one. Well-formed: nothing around it, all entries have these two
    keys and no others, and four finite numbers. Other entries give no item. ``[]`` means that there is no box.
    """
    text = strip_end_token(text)
    well = True
    if fence := _FENCE.search(text):
        close = text.find("```", fence.end())
        if close < 0:
            return [], False
        well = fence.start() == 0 and close + 3 == len(text)
        text = text[fence.end() : close]
    try:
        entries = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError):  # no JSON, or nested too deep to read: an answer without boxes
        return [], False
    if not isinstance(entries, list):
        return [], False
    read = [_entry(entry) for entry in entries]
    items = [item for item in read if item is not None]
    return items, well and len(items) == len(read)


def mended(text: str, form: Form) -> tuple[str, bool]:
    """(a text that ``boxes`` reads all of, whether the answer was well-formed). For a judge: a base model writes a
    single object without a list, a key more, single quotes, or is cut off in its list, and what it found is there to
    be counted. A reward asks for the form and does not mend."""
    items, well = boxes(text, form)
    if well or form != "json":
        return text, well
    found = [entry for match in _OBJECT.finditer(text) if (entry := _salvaged(match[0])) is not None]
    return (json.dumps(found) if len(found) > len(items) else text), False


def _salvaged(text: str) -> dict[str, Any] | None:
    """Entry of ``json_boxes`` out of an object that has a box; a label that is missing is empty."""
    try:
        entry = ast.literal_eval(text)  # JSON of plain values, and Python's single quotes
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    box = entry.get("bbox_2d") if isinstance(entry, dict) else None
    if not isinstance(box, list) or len(box) != 4:
        return None
    if any(isinstance(x, bool) or not isinstance(x, int | float) or not abs(x) <= MAX_COORDINATE for x in box):
        return None
    return {"bbox_2d": box, "label": str(entry.get("label", ""))}


def plain_boxes(text: str) -> tuple[list[LabelledBox], bool]:
    """Boxes ``[x1, y1, x2, y2]``, ``(x1, y1, x2, y2)`` or ``(x1,y1),(x2,y2)``, any number of them, in order.

    Well-formed: at least one, and only commas and white space between.
    """
    text = strip_end_token(text)
    matches = list(_ANY_PLAIN.finditer(text))
    items = [LabelledBox(_box([group for group in match.groups() if group is not None])) for match in matches]
    return items, _only(text, matches)


def points(text: str) -> tuple[list[Point], bool]:
    """Points ``(x,y)``, any number of them. Well-formed: only commas and white space between; empty text means no
    point."""
    text = strip_end_token(text)
    matches = list(_POINT.finditer(text))
    items = [(float(match[1]), float(match[2])) for match in matches]
    return items, not text or _only(text, matches)


def first_box(text: str) -> Box | None:
    """Box of an answer in any form, by the rule of Perception-R1.

    It is the first ``[4 numbers]`` in the text, otherwise the first ``(4 numbers)``, otherwise the first
    ``(x1,y1),(x2,y2)``; None when there is none.
    """
    for pattern in _PLAIN:
        if match := pattern.search(text):
            return _box(match.groups())
    return None


def unwrap(text: str) -> tuple[str, bool]:
    """Answer in ``<think>...</think><answer>...</answer>``, and whether the text is that and nothing else.

    The answer is the content of the last ``<answer>``, closed or not. Without one, it is the text after the last
    ``</think>``, or the whole text.
    """
    text = strip_end_token(text)
    head, opened, tail = text.rpartition(ANSWER)
    if not opened:
        return text.rpartition(THINK_END)[2].strip(), False
    answer, closed, rest = tail.partition(ANSWER_END)
    head = head.strip()
    once = all(text.count(tag) == 1 for tag in (THINK, THINK_END, ANSWER, ANSWER_END))
    well = once and bool(closed) and not rest and head.startswith(THINK) and head.endswith(THINK_END)
    return answer.strip(), well


def write_tokens(items: Sequence[LabelledBox]) -> str:
    """Text that ``token_boxes`` reads as these items. Consecutive boxes with the same label share it. Rounds to
    integers.

    ValueError for a label that would not be read unchanged, and for a box without a label after one with.
    """
    parts: list[str] = []
    label: str | None = None
    for item in items:
        if item.label != label:
            label = _writable(item.label, "<|")
            parts.append(f"{REF}{label}{REF_END}")
        x1, y1, x2, y2 = map(round, item.box)
        parts.append(f"{BOX}({x1},{y1}),({x2},{y2}){BOX_END}")
    return "".join(parts)


def write_json(items: Sequence[LabelledBox]) -> str:
    """Text that ``json_boxes`` reads as these items, in a fence, an entry a line. Rounds to integers.

    ValueError for a missing label and for one that would not be read unchanged.
    """
    entries = [{"bbox_2d": [round(x) for x in item.box], "label": _writable(item.label, "```")} for item in items]
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    return "```json\n[" + ",\n ".join(lines) + "]\n```"


def _writable(label: str | None, forbidden: str) -> str:
    if label is None or forbidden in label or label != label.strip():
        raise ValueError(f"label {label!r} cannot be written: it must be trimmed text without {forbidden!r}")
    return label


def _entry(entry: Any) -> LabelledBox | None:
    """Item of one entry of a JSON list; None when it is malformed. Numbers are floats here, booleans are not."""
    if not isinstance(entry, dict) or set(entry) != {"bbox_2d", "label"}:
        return None
    box, label = entry["bbox_2d"], entry["label"]
    if not isinstance(label, str) or not isinstance(box, list) or len(box) != 4:
        return None
    if not all(isinstance(x, float) and abs(x) <= MAX_COORDINATE for x in box):
        return None
    return LabelledBox((box[0], box[1], box[2], box[3]), label.strip())


def _number(literal: str) -> float:
    """JSON number as float; a literal longer than any coordinate, and NaN or Infinity, as NaN."""
    return float(literal) if len(literal) <= 32 else math.nan


def _box(groups: Sequence[str]) -> Box:
    x1, y1, x2, y2 = map(float, groups)
    return x1, y1, x2, y2


def _only(text: str, matches: Sequence[re.Match[str]]) -> bool:
    """Whether there are matches and only commas and white space around them."""
    starts = [match.start() for match in matches] + [len(text)]
    ends = [0, *(match.end() for match in matches)]
    return bool(matches) and all(not text[a:b].strip(", \t\r\n") for a, b in zip(ends, starts, strict=True))


def strip_end_token(text: str) -> str:
    """Text without white space around it and the end-of-turn token after it, where generation stops."""
    text = text.strip()
    return text[: text.rindex("<|")].rstrip() if text.endswith(ENDS) else text
