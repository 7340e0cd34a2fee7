"""Metrics of boxes: COCO's average precision without confidences, accuracy at an IoU, counts. No torch.

Average precision is that of pycocotools (bbox, at most 100 boxes of a class in an image, 101 recalls) where every box
has the same confidence, because language models give none. Boxes count in the order in which they were written, images
in their given order. Crowds and boxes outside of the range of areas are ignored like there: a prediction that is
matched with one is neither right nor wrong. The tests compare it with COCOeval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepstack.scoring.vision.spatial import Box, area, centre, contains, iofs, iou, ious

Labelled = tuple[Box, str]
SizeRange = Literal["all", "small", "medium", "large"]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_BOXES = 100  # boxes of one class in one image that count; later ones are ignored
ACCURACIES = (0.5, 0.75, 0.95)
# Least and largest area in square pixels, both inclusive, as in COCOeval.
AREAS: Mapping[SizeRange, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


class GoldBox(NamedTuple):
    """True box in pixels of the stored picture.

    ``area``: square pixels that decide its size, in COCO those of its segmentation; None: the box's own. ``crowd``:
    whether it is a region of many objects that nobody marked one by one.
    """

    box: Box
    label: str
    area: float | None = None
    crowd: bool = False


class ClassHits(NamedTuple):
    """Matches of one class in one image: the number of targets that are not ignored, which predictions [10 thresholds,
    predictions] hit one, and which count as right or wrong."""

    targets: int
    hits: NDArray[np.bool_]
    counted: NDArray[np.bool_]


Compared = Mapping[str, ClassHits]  # one image, by label


def compare(targets: Sequence[GoldBox], predictions: Sequence[Labelled], size: SizeRange = "all") -> Compared:
    """Matches of one image by label. A bootstrap does this once an image, then calls ``precision_of`` on any draw of
    images.

    Predictions are in pixels as well. Labels are compared exactly. Ignored are crowds, targets whose area is outside of
    the range ``size``, and predictions that are matched with one of these, or with nothing and whose own area is
    outside. A prediction overlaps a crowd by the share of its own area that lies in it, and any number may be matched
    with one. A target without area is never hit; a prediction without area, such as a reversed one, is small.
    """
    truth: dict[str, list[GoldBox]] = {}
    for target in targets:
        truth.setdefault(target.label, []).append(target)
    by_label: dict[str, list[Box]] = {}
    for box, label in predictions:
        by_label.setdefault(label, []).append(box)
    return {
        label: _class_hits(truth.get(label, []), by_label.get(label, [])[:MAX_BOXES], *AREAS[size])
        for label in sorted(truth.keys() | by_label.keys())  # in one order, so that means are the same to the last bit
    }


def precision_of(images: Sequence[Compared]) -> dict[str, float] | None:
    """Average precisions ``ap`` (mean over thresholds .5 to .95), ``ap50`` and ``ap75``; None when no image has a
    target that is not ignored, where COCOeval prints -1.

    They are means over the classes that have such a target somewhere. Predictions of other classes do not count.
    """
    classes: dict[str, list[ClassHits]] = {}
    for image in images:
        for label, hits in image.items():
            classes.setdefault(label, []).append(hits)
    precisions = [_precision(hits) for hits in classes.values() if any(one.targets for one in hits)]
    if not precisions:
        return None
    mean = np.mean(precisions, axis=0)
    return {"ap": float(mean.mean()), "ap50": float(mean[0]), "ap75": float(mean[5])}


def average_precision(
    images: Sequence[tuple[Sequence[GoldBox], Sequence[Labelled]]], size: SizeRange = "all"
) -> dict[str, float] | None:
    """Average precisions of ``precision_of`` for the (targets, predictions) of each image, in a range of areas."""
    return precision_of([compare(targets, predictions, size) for targets, predictions in images])


def box_figures(predicted: Box | None, target: Box) -> dict[str, float]:
    """Metrics of one box: ``iou``, ``acc50``, ``acc75``, ``acc95`` (1 where IoU >= that), ``acc_mean`` and
    ``centre_acc``.

    ``acc_mean`` is the mean of the three, ``centre_acc`` is 1 where the box's centre lies in the target. ``predicted``
    None: the answer had no box.
    """
    overlap = 0.0 if predicted is None else iou(predicted, target)
    right = {f"acc{round(100 * level)}": float(overlap >= level) for level in ACCURACIES}
    inside = predicted is not None and contains(target, centre(predicted))
    return {"iou": overlap, **right, "acc_mean": sum(right.values()) / len(right), "centre_acc": float(inside)}


def count_figures(predicted: int, target: int) -> dict[str, float]:
    """Metrics of one count: ``exact`` and ``absolute_error``, whose mean over images is the MAE."""
    return {"exact": float(predicted == target), "absolute_error": float(abs(predicted - target))}


def _class_hits(targets: Sequence[GoldBox], boxes: Sequence[Box], least: float, most: float) -> ClassHits:
    """Matches of one class in one image, in a range of areas."""
    true_boxes = [target.box for target in targets]
    crowds = np.array([target.crowd for target in targets], bool)
    overlaps = np.where(crowds, iofs(boxes, true_boxes), ious(boxes, true_boxes))
    areas = np.array([area(target.box) if target.area is None else target.area for target in targets], float)
    ignored = crowds | (areas < least) | (areas > most)
    sizes = np.array([area(box) for box in boxes], float)
    outside = (sizes < least) | (sizes > most)
    hits, counted = _hits(overlaps, crowds, ignored, outside)
    seen = counted.any(axis=0)
    return ClassHits(int((~ignored).sum()), hits[:, seen], counted[:, seen])


def _hits(
    overlaps: NDArray[np.float64], crowds: NDArray[np.bool_], ignored: NDArray[np.bool_], outside: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Hits and counted predictions, both [thresholds, D], from ``overlaps`` [D, M], ``crowds`` and ``ignored`` [M], and
    ``outside`` [D].

    Each prediction in turn takes the free target that it overlaps most, from the threshold on, and an ignored one only
    where there is no other. A crowd stays free. Of equal overlaps it takes the last one, like COCOeval.
    """
    D, M = overlaps.shape
    hits = np.zeros((len(THRESHOLDS), D), bool)
    counted = np.repeat(~outside[None], len(THRESHOLDS), axis=0)
    if not M:
        return hits, counted
    free = np.ones((len(THRESHOLDS), M), bool)
    for d, overlap in enumerate(overlaps):
        candidates = free & (overlap >= THRESHOLDS[:, None])
        preferred = candidates & ~ignored
        hits[:, d] = preferred.any(axis=1)
        candidates = np.where(hits[:, d, None], preferred, candidates)
        matched = candidates.any(axis=1)
        counted[:, d] = np.where(matched, hits[:, d], counted[:, d])
        best = M - 1 - np.where(candidates, overlap, -1.0)[:, ::-1].argmax(axis=1)
        free[matched, best[matched]] = crowds[best[matched]]
    return hits, counted


def _precision(classes: Sequence[ClassHits]) -> NDArray[np.float64]:
    """Average precision of a class at each threshold.

    Precision at a recall is the highest at that recall or a larger one. It changes only where a target is hit, so the
    mean over 101 recalls is a sum over hits, each weighted by how many recalls it is the first to reach.
    """
    hits = np.concatenate([one.hits for one in classes], axis=1)
    counted = np.concatenate([one.counted for one in classes], axis=1)
    reached = hits.cumsum(axis=1)
    precision = reached / np.maximum(counted.cumsum(axis=1), 1)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    weights = _recalls(sum(one.targets for one in classes))
    return (hits * weights[reached] * highest).sum(axis=1) / len(RECALLS)


@lru_cache(maxsize=1 << 12)
def _recalls(targets: int) -> NDArray[np.int64]:
    """Number of recalls that the k-th hit is the first to reach, [targets + 1]."""
    first = np.searchsorted(np.arange(targets + 1) / targets, RECALLS)
    return np.bincount(np.maximum(first, 1), minlength=targets + 1)
