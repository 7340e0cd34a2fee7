"""Rewards of visual perception: grounding, counting, OCR, detection, after Perception-R1 (arXiv 2504.07954). No torch.

Each function scores one text and returns its parts by name, each in [0, 1] (``missing`` of detection in [-1, 0]) for
any text; ``total`` weighs them. Perception-R1 published the code of grounding alone. Counting, OCR and detection follow
its description. The numbers that it does not give (MAX_POINT_DISTANCE, the aggregation) are ours.

Targets are in pixels of the stored image and have passed ``spatial.check``. ``Frame`` has the space that the model
writes in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stepstack.scoring.text.similarity import normalised_edit_distance
from stepstack.scoring.vision import answers
from stepstack.scoring.vision.answers import Form, LabelledBox
from stepstack.scoring.vision.matching import in_order, match
from stepstack.scoring.vision.spatial import (
    Box,
    Point,
    Size,
    Space,
    centre,
    convert,
    convert_point,
    iofs,
    iou,
    ious,
    point_distance,
)

MAX_POINT_DISTANCE = 0.1  # in diagonals of the image, from which on a point is worth nothing
MIN_TRUE_POSITIVE_IOU = 0.5
MIN_IN_CROWD = 0.5  # share of a box's area from which on it lies in a crowd region
LABEL_BONUS = 1e-6  # decides between matchings of equal IoU, and too small to change others


@dataclass(frozen=True, slots=True)
class Frame:
    """Space of the numbers of an answer, with the (width, height) of the stored image.

    ``model_size``: the same of the image that the model saw, which space "model" needs.
    """

    space: Space
    size: Size
    model_size: Size | None = None

    def pixels(self, box: Box) -> Box:
        return convert(box, self.space, "pixels", self.size, self.model_size)

    def pixels_of_point(self, point: Point) -> Point:
        return convert_point(point, self.space, "pixels", self.size, self.model_size)


def total(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted sum of the parts. ValueError unless every part has a weight (0 leaves it out) and every weight a
    part."""
    if parts.keys() != weights.keys():
        raise ValueError(f"the weights {sorted(weights)} must name the parts of the reward, {sorted(parts)}")
    return math.fsum(weights[name] * value for name, value in parts.items())


def grounding_box(text: str, frame: Frame, form: Form = "tokens") -> Box | None:
    """One box of an answer, in pixels: the first in its form, otherwise the first in any form
    (``answers.first_box``)."""
    items, _ = answers.boxes(text, form)
    box = items[0].box if items else answers.first_box(text)
    return None if box is None else frame.pixels(box)


def grounding(
    text: str,
    target: Box,
    frame: Frame,
    *,
    finished: bool,
    form: Form = "tokens",
    squared: bool = False,
    thinking: bool = False,
) -> dict[str, float]:
    """Parts of the grounding reward, ``format`` and ``iou``.

    ``format``: one box and nothing else, in form tokens with its label. ``iou``: IoU of that box, or of the first one.
    ``squared``: IoU squared, like in Perception-R1's code. ``finished``: the model ended its answer itself.
    """
    text, well = _open(text, thinking, finished)
    items, formed = answers.boxes(text, form)
    well &= formed and len(items) == 1 and (form != "tokens" or items[0].label is not None)
    box = grounding_box(text, frame, form)
    overlap = 0.0 if box is None else iou(box, target)
    return {"format": float(well), "iou": overlap**2 if squared else overlap}


def counting(
    text: str,
    targets: Sequence[Box | Point],
    frame: Frame,
    *,
    finished: bool,
    form: Form | Literal["points"] = "tokens",
    matching: bool = True,
    tau: float = MAX_POINT_DISTANCE,
    thinking: bool = False,
) -> dict[str, float]:
    """Parts of the counting reward, ``format``, ``points`` and ``exact``: the model detects objects, then counts them.

    ``points``: each box's centre (or point) is worth max(0, 1 - d / tau), d being its distance to its target in
    diagonals; the sum over matched pairs is divided by max(predictions, targets). ``exact``: the count is right.
    ``format``: boxes and nothing else. An image without objects requires an empty, well-formed answer; another text
    without boxes does not count.
    """
    text, well = _open(text, thinking, finished)
    predicted, formed = _points(text, frame, form)
    well &= formed
    expected = [_middle(target) for target in targets]
    if not predicted and not expected:
        return dict.fromkeys(("format", "points", "exact"), float(well))
    if matching:  # in an order of their own, so that the text's order cannot matter, not even between equal matchings
        predicted, expected = sorted(predicted), sorted(expected)
    near = np.zeros((len(predicted), len(expected)))
    for i, point in enumerate(predicted):
        for j, target in enumerate(expected):
            near[i, j] = max(0.0, 1 - point_distance(point, target, frame.size) / tau)
    worth = sum(near[pair] for pair in _pairs(near, matching))
    return {
        "format": float(well),
        "points": float(worth) / max(len(predicted), len(expected)),
        "exact": float(len(predicted) == len(expected)),
    }


def ocr(text: str, gold: str, *, finished: bool, thinking: bool = False) -> dict[str, float]:
    """Parts of the OCR reward, ``format`` and ``similarity``.

    ``similarity``: 1 - edit distance over the longer length, of texts without surrounding white space, characters
    unchanged. ``format``: finished, and not empty unless the gold text is.
    """
    text, well = _open(text, thinking, finished)
    text, gold = answers.strip_end_token(text), gold.strip()
    return {
        "format": float(well and (bool(text) or not gold)),
        "similarity": 1 - normalised_edit_distance(text, gold),
    }


def detected_boxes(text: str, frame: Frame, form: Form = "json") -> tuple[list[tuple[Box, str]], bool]:
    """Labelled boxes of an answer, in pixels, and whether it is well-formed: every box has a label."""
    items, well = answers.boxes(text, form)
    labelled = [(frame.pixels(item.box), item.label) for item in items if item.label is not None]
    return labelled, well and len(labelled) == len(items)


def detection(
    text: str,
    targets: Sequence[tuple[Box, str]],
    frame: Frame,
    *,
    finished: bool,
    form: Form = "json",
    matching: bool = True,
    label_bonus: float = LABEL_BONUS,
    same_label: bool = False,
    over: Literal["matched", "all"] = "matched",
    thinking: bool = False,
    crowds: Sequence[tuple[Box, str]] = (),
) -> dict[str, float]:
    """Parts of the detection reward for N boxes and M targets.

    They are matched by IoU + ``label_bonus`` where labels agree (only boxes that overlap). ``location``: mean IoU of
    matched pairs. ``cls``: fraction of matched pairs with the same label. Both means are ``over`` matched pairs alone,
    which one good box maximises, or over all, max(N, M). ``count_f1``: 2 TP / (N + M), TP being matched with IoU >=
    0.5, and with the same label if ``same_label``. ``missing``: -(M - matched) / M. ``format``: well-formed.

    ``crowds``: regions of many objects that are no targets, in pixels. A box in one of its label that is matched with
    no target has neither reward nor penalty: it is not among the N.

    An image without objects requires an empty, well-formed answer, whose parts are all full. Any box there, unless it
    lies in a crowd, leaves 0 except for the format.
    """
    text, well = _open(text, thinking, finished)
    predicted, formed = detected_boxes(text, frame, form)
    well &= formed
    expected = list(targets)
    if matching:  # as in counting
        predicted, expected = sorted(predicted), sorted(expected)
    overlaps = ious([box for box, _ in predicted], [box for box, _ in expected])
    same = np.array([[a == b for _, b in expected] for _, a in predicted], bool).reshape(overlaps.shape)
    pairs = _pairs(np.where(overlaps > 0, overlaps + label_bonus * same, 0.0), matching)
    matched = {i for i, _ in pairs}
    unmatched = [item for i, item in enumerate(predicted) if i not in matched]
    N, M = len(predicted) - sum(_in_crowd(item, crowds) for item in unmatched), len(expected)
    if not N and not M:
        return {**dict.fromkeys(("format", "location", "cls", "count_f1"), float(well)), "missing": 0.0}
    hits = [pair for pair in pairs if overlaps[pair] >= MIN_TRUE_POSITIVE_IOU and (same[pair] or not same_label)]
    count = max(len(pairs), 1) if over == "matched" else max(N, M)
    return {
        "format": float(well),
        "location": float(sum(overlaps[pair] for pair in pairs)) / count,
        "cls": float(sum(same[pair] for pair in pairs)) / count,
        "count_f1": 2 * len(hits) / (N + M),
        "missing": (len(pairs) - M) / M if M else 0.0,
    }


def _in_crowd(item: tuple[Box, str], crowds: Sequence[tuple[Box, str]]) -> bool:
    """Whether half of a box or more lies in a crowd of its label."""
    regions = [box for box, label in crowds if label == item[1]]
    return bool(regions) and bool((iofs([item[0]], regions) >= MIN_IN_CROWD).any())


def _open(text: str, thinking: bool, finished: bool) -> tuple[str, bool]:
    """Text of the answer, and whether the text around it is well-formed."""
    if not thinking:
        return text, finished
    answer, wrapped = answers.unwrap(text)
    return answer, wrapped and finished


def _points(text: str, frame: Frame, form: Form | Literal["points"]) -> tuple[list[Point], bool]:
    """Points of an answer, in pixels."""
    if form == "points":
        points, well = answers.points(text)
        return [frame.pixels_of_point(point) for point in points], well
    items: list[LabelledBox]
    items, well = answers.boxes(text, form)
    return [centre(frame.pixels(item.box)) for item in items], well


def _middle(target: Box | Point) -> Point:
    return centre(target) if len(target) == 4 else target


def _pairs(scores: NDArray[np.float64], matching: bool) -> list[tuple[int, int]]:
    return match(scores) if matching else in_order(scores)
