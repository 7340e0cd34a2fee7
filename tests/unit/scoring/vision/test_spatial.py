"""Boxes: IoU against counting cells, conversions there and back, smart_resize against transformers'."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

from stepstack.scoring.vision.spatial import (
    area,
    centre,
    check,
    clip,
    contains,
    convert,
    convert_point,
    iofs,
    iou,
    ious,
    point_distance,
    smart_resize,
)

SPACES = ("pixels", "model", "thousand", "unit")
cells = st.integers(0, 8).map(float)
grid_boxes = st.tuples(cells, cells, cells, cells)
anything = st.one_of(cells, st.floats(), st.sampled_from([1e308, -1e308, 1e-308, math.inf, math.nan, -0.0]))
wild_boxes = st.tuples(anything, anything, anything, anything)


def covered(box) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = map(int, box)
    return set(itertools.product(range(x1, x2), range(y1, y2)))


@given(grid_boxes, grid_boxes)
def test_iou_counts_cells(a, b):
    one, two = covered(a), covered(b)
    assert area(a) == len(one)
    assert iou(a, b) == pytest.approx(len(one & two) / len(one | two) if one and two else 0.0, abs=0)


@given(wild_boxes, wild_boxes)
def test_iou_is_symmetric_and_bounded_whatever_the_numbers(a, b):
    assert 0.0 <= iou(a, b) <= 1.0
    assert iou(a, b) == iou(b, a)
    assert iou(a, a) == float(0 < area(a) < 8e307)  # twice the area must be a number


@given(st.lists(wild_boxes, max_size=4), st.lists(wild_boxes, max_size=4))
def test_ious_is_iou_of_all_pairs(a, b):
    result = ious(a, b)
    assert result.shape == (len(a), len(b))
    assert result.tolist() == [[iou(x, y) for y in b] for x in a]


@given(st.lists(grid_boxes, max_size=4), st.lists(grid_boxes, max_size=4))
def test_iofs_count_cells_of_the_first_box(a, b):
    shares = [[len(covered(x) & covered(y)) / len(covered(x)) if covered(x) else 0.0 for y in b] for x in a]
    assert iofs(a, b).shape == (len(a), len(b))
    assert iofs(a, b).tolist() == shares


@given(st.lists(wild_boxes, max_size=4), st.lists(wild_boxes, max_size=4))
def test_iofs_are_bounded_whatever_the_numbers(a, b):
    assert ((iofs(a, b) >= 0) & (iofs(a, b) <= 1)).all()


@pytest.mark.parametrize(
    "box",
    [
        (3, 3, 1, 1),  # reversed both ways: width times height is positive, and still it is no area
        (3, 1, 1, 3),
        (1, 1, 1, 3),
        (0, 0, math.nan, 3),
        (0, 0, math.inf, 3),
        (-1e308, 0, 1e308, 1),
    ],
)
def test_no_area(box):
    assert area(box) == 0
    assert iou(box, box) == 0
    assert iou(box, (0, 0, 4, 4)) == 0


@given(grid_boxes, st.floats(-20, 20), st.floats(-20, 20), st.floats(0, 1))
def test_moving_a_copy_closer_never_lowers_iou(box, dx, dy, share):
    def moved(s: float):
        return box[0] + s * dx, box[1] + s * dy, box[2] + s * dx, box[3] + s * dy

    assert iou(moved(share), box) >= iou(moved(1.0), box) - 1e-9


def test_conversions():
    size, model = (640, 480), (644, 476)
    assert convert((64, 48, 320, 240), "pixels", "thousand", size) == pytest.approx((100, 100, 500, 500))
    assert convert((100, 100, 500, 500), "thousand", "unit") == pytest.approx((0.1, 0.1, 0.5, 0.5))
    assert convert((0, 0, 640, 480), "pixels", "model", size, model) == pytest.approx((0, 0, 644, 476))
    assert convert_point((322, 119), "model", "pixels", size, model) == pytest.approx((320, 120))


@given(grid_boxes, st.sampled_from(SPACES), st.sampled_from(SPACES), st.sampled_from([(640, 480), (3, 1000)]))
def test_conversions_go_back_and_keep_iou(box, source, target, size):
    other = (1.0, 2.0, 5.0, 6.0)
    there = convert(box, source, target, size, (56, 84))
    assert convert(there, target, source, size, (56, 84)) == pytest.approx(box)
    assert convert_point(centre(box), source, target, size, (56, 84)) == pytest.approx(centre(there))
    assert iou(there, convert(other, source, target, size, (56, 84))) == pytest.approx(iou(box, other))


def test_a_space_without_its_size_is_an_error():
    with pytest.raises(ValueError, match="model_size=None"):
        convert((0, 0, 1, 1), "model", "unit", (10, 10))
    with pytest.raises(ValueError, match=r"size=\(0, 10\)"):
        convert((0, 0, 1, 1), "unit", "pixels", (0, 10))
    with pytest.raises(ValueError, match="percent"):
        convert((0, 0, 1, 1), "percent", "unit")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((0, 0, 10, 20), None),
        ((0, 0, 11, 20), "outside"),
        ((-1, 0, 5, 5), "outside"),
        ((5, 0, 5, 5), "no area"),
        ((6, 0, 5, 5), "reversed"),
        ((math.nan, 0, 5, 5), "not finite"),
    ],
)
def test_check(box, reason):
    problem = check(box, (10, 20))
    assert problem is None if reason is None else reason in problem


def test_clip_contains_and_distance():
    assert clip((-5, 2, 30, 8), (10, 20)) == (0, 2, 10, 8)
    assert area(clip((30, 30, 40, 40), (10, 20))) == 0
    assert contains((0, 0, 2, 2), (2, 0))
    assert not contains((0, 0, 2, 2), (2.1, 0))
    assert point_distance((0, 0), (30, 40), (300, 400)) == pytest.approx(0.1)
    # the same two points in stretched coordinates are further apart or nearer
    assert point_distance((0, 0), (0, 400), (400, 400)) != pytest.approx(point_distance((0, 0), (0, 1), (2, 1)))


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([14, 28, 32]), st.sampled_from([3136, 401408]))
def test_smart_resize_is_transformers_own(width, height, factor, max_pixels):
    assume(max(width, height) <= 200 * min(width, height))
    height_then, width_then = theirs(height, width, factor, 3136, max_pixels)
    assert smart_resize(width, height, factor, 3136, max_pixels) == (width_then, height_then)


def test_smart_resize_defaults_and_limits():
    assert smart_resize(640, 480) == (644, 476) == theirs(480, 640)[::-1]
    assert smart_resize(4000, 3000) == theirs(3000, 4000)[::-1]
    for width, height in [(201, 1), (0, 5)]:
        with pytest.raises(ValueError, match="200:1"):
            smart_resize(width, height)


def test_ious_of_nothing():
    assert ious([], [(0, 0, 1, 1)]).shape == (0, 1)
    assert ious([(0, 0, 1, 1)], []).shape == (1, 0)
    assert ious([], []).dtype == np.float64
