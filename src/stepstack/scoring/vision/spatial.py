"""Boxes and points, and the only place where their coordinates change from one space to another. No torch.

A box is (x1, y1, x2, y2), a point (x, y), an image size (width, height). The y axis points down. Nothing here rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Size = tuple[float, float]

# pixels: those of the stored image; model: those of the image resized for the model (Qwen2.5-VL writes these);
# thousand: 0..1000 of width and height (Qwen2-VL); unit: 0..1 of them.
Space = Literal["pixels", "model", "thousand", "unit"]

MAX_ASPECT = 200  # largest ratio of sides that Qwen2-VL takes


def convert(box: Box, source: Space, target: Space, size: Size | None = None, model_size: Size | None = None) -> Box:
    """Box in another space. ``size`` is needed from or to pixels, ``model_size`` from or to model.

    ValueError for a size that is needed and missing or not positive, and for an unknown space.
    """
    x, y = _scale(source, target, size, model_size)
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def convert_point(
    point: Point, source: Space, target: Space, size: Size | None = None, model_size: Size | None = None
) -> Point:
    """Point in another space, like ``convert``."""
    x, y = _scale(source, target, size, model_size)
    return point[0] * x, point[1] * y


def _scale(source: Space, target: Space, size: Size | None, model_size: Size | None) -> tuple[float, float]:
    """Factors of x and of y."""
    old, new = _extent(source, size, model_size), _extent(target, size, model_size)
    return (1.0, 1.0) if source == target else (new[0] / old[0], new[1] / old[1])


def _extent(space: Space, size: Size | None, model_size: Size | None) -> Size:
    """Width and height of the whole image in a space."""
    match space:
        case "unit":
            return 1.0, 1.0
        case "thousand":
            return 1000.0, 1000.0
        case "pixels":
            name, extent = "size", size
        case "model":
            name, extent = "model_size", model_size
        case _:
            raise ValueError(f"unknown space {space!r}: there are pixels, model, thousand, unit")
    if extent is None or not (extent[0] > 0 and extent[1] > 0):
        raise ValueError(f"{name}={extent}: coordinates in {space!r} need {name}=(width, height), both above 0")
    return extent


def check(box: Box, size: Size) -> str | None:
    """Reason why a box is no box of an image of that size, in the same pixels; None when it is one. For data, not
    answers."""
    x1, y1, x2, y2 = box
    width, height = size
    if not all(map(math.isfinite, box)):
        return f"{list(box)} is not finite"
    if x2 < x1 or y2 < y1:
        return f"{list(box)} is reversed: it must be x1, y1, x2, y2 with x1 < x2 and y1 < y2"
    if x1 == x2 or y1 == y2:
        return f"{list(box)} has no area"
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        return f"{list(box)} reaches outside the image of {width:g} x {height:g}"
    return None


def clip(box: Box, size: Size) -> Box:
    """Part of a box within the image. A box wholly outside ends without area."""
    (x1, y1, x2, y2), (width, height) = box, size
    return min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)


def area(box: Box) -> float:
    """Area of a box; 0 for a box that is reversed (in one or both directions), degenerate or not finite."""
    width, height = box[2] - box[0], box[3] - box[1]
    product = width * height
    return product if width > 0 and height > 0 and math.isfinite(product) else 0.0


def iou(a: Box, b: Box) -> float:
    """Intersection over union in [0, 1], symmetric; 0 where a box has no ``area``, never NaN.

    It is also 0 where the sum of the areas overflows, which no image comes near. Scaling both boxes along an axis
    changes nothing, so any common space works.
    """
    one, two = area(a), area(b)
    if not one or not two:
        return 0.0
    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = one + two - common
    return min(common / union, 1.0) if math.isfinite(union) else 0.0


def ious(a: Sequence[Box], b: Sequence[Box]) -> NDArray[np.float64]:
    """Intersection over union of all pairs, [len(a), len(b)]."""
    common, areas, others = _intersections(a, b)
    with np.errstate(over="ignore"):
        union = areas + others - common
    valid = (areas > 0) & (others > 0) & np.isfinite(union)
    return np.minimum(np.divide(common, union, out=np.zeros_like(union), where=valid), 1.0)


def iofs(a: Sequence[Box], b: Sequence[Box]) -> NDArray[np.float64]:
    """Intersection over the area of the first box (IoF, over foreground) of all pairs, [len(a), len(b)]; 0 where that
    box has no ``area``."""
    common, areas, _ = _intersections(a, b)
    own = np.broadcast_to(areas, common.shape)
    return np.minimum(np.divide(common, own, out=np.zeros_like(common), where=own > 0), 1.0)


def _intersections(a: Sequence[Box], b: Sequence[Box]) -> tuple[NDArray[np.float64], ...]:
    """Areas of all intersections [len(a), len(b)], of the first boxes [len(a), 1] and of the second [1, len(b)]."""
    one, two = np.array(a, float).reshape(-1, 1, 4), np.array(b, float).reshape(1, -1, 4)
    common = _areas(np.concatenate([np.maximum(one, two)[..., :2], np.minimum(one, two)[..., 2:]], axis=-1))
    return common, _areas(one), _areas(two)


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas of boxes [..., 4]."""
    with np.errstate(over="ignore", invalid="ignore"):
        width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
        products = width * height
        return np.where((width > 0) & (height > 0) & np.isfinite(products), products, 0.0)


def centre(box: Box) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def contains(box: Box, point: Point) -> bool:
    """Whether a point lies in the box. Edges belong to the box."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def point_distance(a: Point, b: Point, size: Size) -> float:
    """Distance in units of the image's diagonal, where points and size are in the same space.

    It differs between pixels and unit or thousand coordinates, which stretch an image that is no square.
    """
    return math.hypot(a[0] - b[0], a[1] - b[1]) / math.hypot(*size)


def smart_resize(
    width: int, height: int, factor: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 28 * 28 * 1280
) -> tuple[int, int]:
    """Width and height of the image that Qwen2-VL and Qwen2.5-VL see.

    They are multiples of ``factor`` (patch times merge) of about the same shape, with between ``min_pixels`` and
    ``max_pixels`` in all. The tests compare it with the models' own image processor. ValueError for an image more than
    200 times as long as wide, or without pixels.
    """
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"an image of {width} x {height}: sides must be at least 1 and at most {MAX_ASPECT}:1")
    sides = (width, height)
    fitted = [round(side / factor) * factor for side in sides]
    if math.prod(fitted) > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        fitted = [max(factor, math.floor(side / shrink / factor) * factor) for side in sides]
    elif math.prod(fitted) < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        fitted = [math.ceil(side * grow / factor) * factor for side in sides]
    return fitted[0], fitted[1]
