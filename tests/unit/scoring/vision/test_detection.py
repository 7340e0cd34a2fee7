"""Average precision against pycocotools' COCOeval, and the single-box figures."""

from __future__ import annotations

import contextlib
import io
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stepstack.scoring.vision.detection import (
    GoldBox,
    average_precision,
    box_figures,
    compare,
    count_figures,
    precision_of,
)

side = st.integers(1, 6)
corner = st.integers(0, 6)
boxes = st.builds(lambda x, y, w, h: (float(x), float(y), float(x + w), float(y + h)), corner, corner, side, side)
items = st.lists(st.tuples(boxes, st.sampled_from("abc")), max_size=6)
images = st.lists(st.tuples(items, items), min_size=1, max_size=5)

# Sides of multiples of 16 pixels, of which 32 and 96 are where ranges of areas meet; areas of one's own do too.
scaled = st.builds(lambda box: tuple(16 * number for number in box), boxes)
areas = st.none() | st.sampled_from([0.0, 1023.5, 1024.0, 1024.5, 9216.0, 9216.5, 1e10, 2e10])
golds = st.lists(st.builds(GoldBox, scaled, st.sampled_from("ab"), areas, st.booleans()), max_size=6)
huge = st.just((0.0, 0.0, 200_000.0, 200_000.0))  # beyond every range, so that it is ignored unless it hits
predicted = st.lists(st.tuples(scaled | huge, st.sampled_from("ab")), max_size=8)
crowded = st.lists(st.tuples(golds, predicted), min_size=1, max_size=4)

SIZES = ("small", "medium", "large")


def gold(images) -> list:
    """Images whose targets are pairs of a box and a label, as gold without crowds."""
    return [([GoldBox(*target) for target in targets], predicted) for targets, predicted in images]


def coco(images) -> list[float | None]:
    """AP, AP50, AP75, AP small, medium and large of COCOeval with score 1.0 for every box; None where it has no class
    to average over."""
    labels = sorted({item[1] for targets, predicted in images for item in [*targets, *predicted]})
    numbers = {label: number for number, label in enumerate(labels, 1)}

    def annotation(image: int, item: GoldBox) -> dict:
        x1, y1, x2, y2 = item.box
        return {
            "image_id": image + 1,
            "category_id": numbers[item.label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1) if item.area is None else item.area,
            "iscrowd": int(item.crowd),
            "score": 1.0,
        }

    with contextlib.redirect_stdout(io.StringIO()):
        truth, predicted = COCO(), COCO()
        for dataset, which in ((truth, 0), (predicted, 1)):
            rows = [annotation(image, GoldBox(*item)) for image, pair in enumerate(images) for item in pair[which]]
            dataset.dataset = {
                "images": [{"id": image + 1} for image in range(len(images))],
                "categories": [{"id": number} for number in numbers.values()],
                "annotations": [{"id": number, **row} for number, row in enumerate(rows, 1)],
            }
            dataset.createIndex()
        scored = COCOeval(truth, predicted, "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return [None if figure < 0 else float(figure) for figure in scored.stats[:6]]


def ours(images) -> list[float | None]:
    whole = average_precision(images) or dict.fromkeys(("ap", "ap50", "ap75"))
    sized = [average_precision(images, size) for size in SIZES]
    return [*(whole[name] for name in ("ap", "ap50", "ap75")), *(figures and figures["ap"] for figures in sized)]


def check_against_coco(images) -> list[float | None]:
    """The six figures, once they are COCOeval's."""
    figures, expected = ours(images), coco(images)
    assert [figure is None for figure in figures] == [figure is None for figure in expected]
    known = [(a, b) for a, b in zip(figures, expected, strict=True) if a is not None]
    assert [a for a, _ in known] == pytest.approx([b for _, b in known], abs=1e-12, rel=0)
    return figures


@settings(max_examples=150, deadline=None)
@given(images)
def test_it_is_cocos(images):
    check_against_coco(gold(images))


@settings(max_examples=400, deadline=None)
@given(crowded)
def test_crowds_and_ranges_of_areas_are_cocos(images):
    check_against_coco(images)


def jittered(draw: random.Random, box, by: int):
    x1, y1, x2, y2 = (side + draw.randint(-by, by) for side in box)
    return float(min(x1, x2 - 1)), float(min(y1, y2 - 1)), float(x2), float(y2)


def scenes(draw: random.Random, count: int, labels: str, *, sides: tuple[int, int] = (20, 120)) -> list:
    """Images whose predictions are jittered targets, some left out, some with another label, some from nowhere."""
    images = []
    for _ in range(count):
        targets = []
        for _ in range(draw.randint(0, 6)):
            x, y = draw.randint(0, 500), draw.randint(0, 400)
            box = (float(x), float(y), float(x + draw.randint(*sides)), float(y + draw.randint(*sides)))
            targets.append((box, draw.choice(labels)))
        remaining = [item for item in targets if draw.random() < 0.8]
        predicted = [
            (jittered(draw, box, 12), label if draw.random() < 0.9 else draw.choice(labels)) for box, label in remaining
        ]
        predicted += [
            ((0.0, 0.0, 50.0, float(draw.randint(10, 90))), draw.choice(labels)) for _ in range(draw.randint(0, 2))
        ]
        draw.shuffle(predicted)
        images.append((targets, predicted))
    return images


@pytest.mark.parametrize("seed", range(4))
def test_it_is_cocos_on_whole_sets(seed):
    figures = check_against_coco(gold(scenes(random.Random(seed), 60, "abcdefgh")))
    assert 0.05 < figures[0] < 0.95


@pytest.mark.parametrize("seed", range(6))
def test_crowds_and_ranges_of_areas_are_cocos_on_whole_sets(seed):
    draw = random.Random(seed)
    images = [
        ([annotated(draw, *target) for target in targets], predicted)
        for targets, predicted in scenes(draw, 60, "abcde", sides=(8, 140))
    ]
    figures = check_against_coco(images)
    assert all(0 < figure < 0.95 for figure in figures)
    without_crowds = [([one for one in targets if not one.crowd], predicted) for targets, predicted in images]
    assert abs(ours(without_crowds)[0] - figures[0]) > 1e-3


def annotated(draw: random.Random, box, label: str) -> GoldBox:
    """A target of which a fifth are crowds, most with the area of a form inside of the box."""
    area = draw.choice([None, draw.uniform(0.4, 1.0) * (box[2] - box[0]) * (box[3] - box[1])])
    return GoldBox(box, label, area, draw.random() < 0.2)


def test_only_a_hundred_boxes_of_a_class_count():
    target = ((0.0, 0.0, 10.0, 10.0), "a")
    wrong = [((20.0, 20.0, 30.0, 30.0), "a")] * 100
    for predicted in ([*wrong[:99], target], [*wrong, target]):
        figures = check_against_coco(gold([([target], predicted)]))
    assert figures[0] == 0


def test_of_equal_overlaps_the_last_target_is_taken():
    first, last = (0.0, 0.0, 10.0, 4.0), (2.0, 0.0, 12.0, 4.0)
    between = (1.0, 0.0, 11.0, 4.0)  # overlaps both alike; the next prediction is the first target itself
    result = [[([(a, "x"), (b, "x")], [(between, "x"), (first, "x")])] for a, b in ((first, last), (last, first))]
    one, other = (check_against_coco(gold(images)) for images in result)
    assert one != other


def test_images_come_in_order():
    box = (0.0, 0.0, 10.0, 10.0)
    hit, miss = ([(box, "a")], [(box, "a")]), ([], [(box, "a")])
    assert check_against_coco(gold([hit, miss]))[0] == pytest.approx(1)
    assert check_against_coco(gold([miss, hit]))[0] == pytest.approx(0.5)


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong():
    """Three boxes in a crowd that is much larger than they are, and are written before the object."""
    crowd, target = (0.0, 0.0, 600.0, 400.0), (300.0, 300.0, 340.0, 340.0)
    inside = [((20.0 * k, 0.0, 20.0 * k + 15, 30.0), "a") for k in range(3)]
    beside = ((580.0, 0.0, 640.0, 30.0), "a")  # a third of it lies in the crowd
    for predicted, expected in ((inside, 1.0), ([*inside, beside], 0.5), ([(box, "b") for box, _ in inside], 1.0)):
        image = ([GoldBox(crowd, "a", crowd=True), GoldBox(target, "a")], [*predicted, (target, "a")])
        assert check_against_coco([image])[0] == pytest.approx(expected)
    alone = [([GoldBox(crowd, "a", crowd=True)], inside)]
    assert check_against_coco(alone) == [None] * 6


def test_the_area_of_the_annotation_decides_its_size():
    """A thin form in a large box is small; a prediction outside of a range is ignored unless it hits in it."""
    box, far = (0.0, 0.0, 100.0, 100.0), (300.0, 300.0, 310.0, 310.0)
    thin = [([GoldBox(box, "a", 900.0)], [(far, "a"), (box, "a")])]
    assert check_against_coco(thin) == pytest.approx([0.5, 0.5, 0.5, 0.5, None, None])
    whole = [([GoldBox(box, "a")], [(far, "a"), (box, "a")])]
    assert check_against_coco(whole) == pytest.approx([0.5, 0.5, 0.5, None, None, 1.0])


def test_without_targets_there_is_no_figure():
    for images in ([([], [])], [([], [((0.0, 0.0, 40.0, 40.0), "a")])]):
        assert check_against_coco(images) == [None] * 6
    assert average_precision([([], [((0.0, 0.0, 1.0, 1.0), "a")])]) is None
    assert average_precision([]) is None


def test_a_reversed_box_hits_nothing():
    target = ((0.0, 0.0, 10.0, 10.0), "a")
    figures = average_precision(gold([([target], [((10.0, 10.0, 0.0, 0.0), "a"), target])]))
    assert figures["ap"] == pytest.approx(0.5)


def test_without_confidences_it_is_about_precision_times_recall():
    """The facts behind the protocol: P/R .5/.5 gives about .25."""
    draw, box = random.Random(0), (0.0, 0.0, 10.0, 10.0)
    images = []
    for _ in range(4000):
        hit = draw.random() < 0.5
        images.append(([(box, "a")], [(box, "a")] if hit else [((20.0, 20.0, 30.0, 30.0), "a")]))
    assert average_precision(gold(images))["ap"] == pytest.approx(0.25, abs=0.02)


def test_a_thousand_draws_of_256_images_take_seconds():
    compared = [compare(*image) for image in gold(scenes(random.Random(1), 256, "abcdefghijklmnopqrst"))]
    begin = time.process_time()
    for seed in range(100):
        precision_of(random.Random(seed).choices(compared, k=256))
    assert time.process_time() - begin < 3


def test_box_figures():
    target = (0.0, 0.0, 10.0, 10.0)
    half = box_figures((0.0, 0.0, 10.0, 5.0), target)  # IoU 0.5, which counts: at least, not above
    expected = {"iou": 0.5, "acc50": 1, "acc75": 0, "acc95": 0, "acc_mean": 1 / 3, "centre_acc": 1}
    assert half == pytest.approx(expected)
    assert set(box_figures(target, target).values()) == {1.0}
    assert set(box_figures(None, target).values()) == {0.0}
    assert box_figures((-90.0, -90.0, 92.0, 92.0), target)["centre_acc"] == 1
    assert box_figures((9.0, 9.0, 13.0, 13.0), target)["centre_acc"] == 0


def test_count_figures():
    assert count_figures(3, 3) == {"exact": 1.0, "absolute_error": 0.0}
    assert count_figures(0, 4) == {"exact": 0.0, "absolute_error": 4.0}
