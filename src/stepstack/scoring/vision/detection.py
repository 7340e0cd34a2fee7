"""Metrics of boxes: COCO's average precision without confidences, accuracy at an IoU, counts. No torch.

Average precision is that of pycocotools (bbox, all areas, at most 100 boxes of a class in an image, 101 recalls) where
every box has the same confidence, because language models give none. Boxes count in the order in which they were
written, images in their given order. The tests compare it with COCOeval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepstack.scoring.vision.spatial import Box, centre, contains, iou, ious

Labelled = tuple[Box, str]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_BOXES = 100  # boxes of one class in one image that count; later ones are ignored
ACCURACIES = (0.5, 0.75, 0.95)


class ClassHits(NamedTuple):
    """Matches of one class in one image: the number of targets, and which predictions [10 thresholds, predictions] hit
    one."""

    targets: int
    hits: NDArray[np.bool_]


Compared = Mapping[str, ClassHits]  # one image, by label


def compare(targets: Sequence[Labelled], predictions: Sequence[Labelled]) -> Compared:
    """Matches of one image by label. A bootstrap does this once an image, then calls ``precision_of`` on any draw of
    images.

    Boxes of both are in one space. A target without area is never hit. Labels are compared exactly.
    """
    truth, by_label = _by_label(targets), _by_label(predictions)
    hits = {}
    for label in truth.keys() | by_label.keys():
        boxes = truth.get(label, [])
        hits[label] = ClassHits(len(boxes), _hits(ious(by_label.get(label, [])[:MAX_BOXES], boxes)))
    return hits


def precision_of(images: Sequence[Compared]) -> dict[str, float] | None:
    """Average precisions ``ap`` (mean over thresholds .5 to .95), ``ap50`` and ``ap75``; None when no image has a
    target.

    They are means over the classes that have a target somewhere. Predictions of other classes do not count.
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
    images: Sequence[tuple[Sequence[Labelled], Sequence[Labelled]]],
) -> dict[str, float] | None:
    """Average precisions of ``precision_of`` for the (targets, predictions) of each image."""
    return precision_of([compare(targets, predictions) for targets, predictions in images])


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


def _by_label(items: Sequence[Labelled]) -> dict[str, list[Box]]:
    boxes: dict[str, list[Box]] = {}
    for box, label in items:
        boxes.setdefault(label, []).append(box)
    return boxes


def _hits(overlaps: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Hits [thresholds, D]: each prediction in turn takes the free target that it overlaps most, from the threshold on.

    Of equal overlaps it takes the last one, like COCOeval.
    """
    D, M = overlaps.shape
    hits = np.zeros((len(THRESHOLDS), D), bool)
    if not M:
        return hits
    free = np.ones((len(THRESHOLDS), M), bool)
    for d, overlap in enumerate(overlaps):
        candidates = np.where(free, overlap, -1.0)
        best = M - 1 - candidates[:, ::-1].argmax(axis=1)
        hits[:, d] = candidates.max(axis=1) >= THRESHOLDS
        free[hits[:, d], best[hits[:, d]]] = False
    return hits


def _precision(classes: Sequence[ClassHits]) -> NDArray[np.float64]:
    """Average precision of a class at each threshold.

    Precision at a recall is the highest at that recall or a larger one. It changes only where a target is hit, so the
    mean over 101 recalls is a sum over hits, each weighted by how many recalls it is the first to reach.
    """
    hits = np.concatenate([one.hits for one in classes], axis=1)
    reached = hits.cumsum(axis=1)
    precision = reached / np.arange(1, hits.shape[1] + 1)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    weights = _recalls(sum(one.targets for one in classes))
    return (hits * weights[reached] * highest).sum(axis=1) / len(RECALLS)


@lru_cache(maxsize=1 << 12)
def _recalls(targets: int) -> NDArray[np.int64]:
    """Number of recalls that the k-th hit is the first to reach, [targets + 1]."""
    first = np.searchsorted(np.arange(targets + 1) / targets, RECALLS)
    return np.bincount(np.maximum(first, 1), minlength=targets + 1)
