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

from stepstack.scoring.vision.detection import average_precision, box_figures, compare, count_figures, precision_of

side = st.integers(1, 6)
corner = st.integers(0, 6)
boxes = st.builds(lambda x, y, w, h: (float(x), float(y), float(x + w), float(y + h)), corner, corner, side, side)
items = st.lists(st.tuples(boxes, st.sampled_from("abc")), max_size=6)
images = st.lists(st.tuples(items, items), min_size=1, max_size=5)


def coco(images) -> list[float] | None:
    """AP, AP50, AP75 of COCOeval with score 1.0 for every box; None where it has no class to average over."""
    labels = sorted({label for targets, predicted in images for _, label in [*targets, *predicted]})
    numbers = {label: number for number, label in enumerate(labels, 1)}

    def rows(which: int) -> list[dict]:
        return [
            {
                "id": number,
                "image_id": image + 1,
                "category_id": numbers[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": 1.0,
            }
            for number, (image, ((x1, y1, x2, y2), label)) in enumerate(
                ((image, item) for image, pair in enumerate(images) for item in pair[which]), 1
            )
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        truth, predicted = COCO(), COCO()
        for dataset, which in ((truth, 0), (predicted, 1)):
            dataset.dataset = {
                "images": [{"id": image + 1} for image in range(len(images))],
                "categories": [{"id": number} for number in numbers.values()],
                "annotations": rows(which),
            }
            dataset.createIndex()
        scored = COCOeval(truth, predicted, "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return None if scored.stats[0] < 0 else scored.stats[:3].tolist()


def ours(images) -> list[float] | None:
    figures = average_precision(images)
    return None if figures is None else [figures["ap"], figures["ap50"], figures["ap75"]]


@settings(max_examples=150, deadline=None)
@given(images)
def test_it_is_cocos(images):
    assert ours(images) == pytest.approx(coco(images), abs=1e-9)


def jittered(draw: random.Random, box, by: int):
    x1, y1, x2, y2 = (side + draw.randint(-by, by) for side in box)
    return float(min(x1, x2 - 1)), float(min(y1, y2 - 1)), float(x2), float(y2)


def scenes(draw: random.Random, count: int, labels: str, *, boxes: int = 6) -> list:
    """Images whose predictions are jittered targets, some left out, some with another label, some from nowhere."""
    images = []
    for _ in range(count):
        targets = []
        for _ in range(draw.randint(0, boxes)):
            x, y = draw.randint(0, 500), draw.randint(0, 400)
            box = (float(x), float(y), float(x + draw.randint(20, 120)), float(y + draw.randint(20, 120)))
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
    images = scenes(random.Random(seed), 60, "abcdefgh")
    assert ours(images) == pytest.approx(coco(images), abs=1e-9)
    assert 0.05 < average_precision(images)["ap"] < 0.95


def test_only_a_hundred_boxes_of_a_class_count():
    target = ((0.0, 0.0, 10.0, 10.0), "a")
    wrong = [((20.0, 20.0, 30.0, 30.0), "a")] * 100
    for predicted in ([*wrong[:99], target], [*wrong, target]):
        images = [([target], predicted)]
        assert ours(images) == pytest.approx(coco(images), abs=1e-9)
    assert average_precision([([target], [*wrong, target])])["ap"] == 0


def test_of_equal_overlaps_the_last_target_is_taken():
    first, last = (0.0, 0.0, 10.0, 4.0), (2.0, 0.0, 12.0, 4.0)
    between = (1.0, 0.0, 11.0, 4.0)  # overlaps both alike; the next prediction is the first target itself
    result = [[([(a, "x"), (b, "x")], [(between, "x"), (first, "x")])] for a, b in ((first, last), (last, first))]
    for images in result:
        assert ours(images) == pytest.approx(coco(images), abs=1e-9)
    assert ours(result[0]) != ours(result[1])


def test_images_come_in_order():
    box = (0.0, 0.0, 10.0, 10.0)
    hit, miss = ([(box, "a")], [(box, "a")]), ([], [(box, "a")])
    assert average_precision([hit, miss])["ap"] == pytest.approx(1)
    assert average_precision([miss, hit])["ap"] == pytest.approx(0.5)
    assert ours([miss, hit]) == pytest.approx(coco([miss, hit]), abs=1e-9)


def test_without_targets_there_is_no_figure():
    assert average_precision([([], [((0.0, 0.0, 1.0, 1.0), "a")])]) is None
    assert average_precision([]) is None


def test_a_reversed_box_hits_nothing():
    target = ((0.0, 0.0, 10.0, 10.0), "a")
    assert average_precision([([target], [((10.0, 10.0, 0.0, 0.0), "a"), target])])["ap"] == pytest.approx(0.5)


def test_without_confidences_it_is_about_precision_times_recall():
    """The facts behind the protocol: P/R .5/.5 gives about .25."""
    draw, box = random.Random(0), (0.0, 0.0, 10.0, 10.0)
    images = []
    for _ in range(4000):
        hit = draw.random() < 0.5
        images.append(([(box, "a")], [(box, "a")] if hit else [((20.0, 20.0, 30.0, 30.0), "a")]))
    assert average_precision(images)["ap"] == pytest.approx(0.25, abs=0.02)


def test_a_thousand_draws_of_256_images_take_seconds():
    compared = [compare(*image) for image in scenes(random.Random(1), 256, "abcdefghijklmnopqrst")]
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
