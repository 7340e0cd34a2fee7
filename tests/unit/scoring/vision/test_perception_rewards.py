"""Rewards of perception: golden cases, and what holds for any text and any prediction."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepstack.scoring.vision.answers import LabelledBox, write_json, write_tokens
from stepstack.scoring.vision.perception import (
    Frame,
    counting,
    detected_boxes,
    detection,
    grounding,
    grounding_box,
    ocr,
    total,
)
from stepstack.scoring.vision.spatial import convert, iou
from tests.unit.scoring.vision.test_answers import WOMAN, texts

PIXELS = Frame("pixels", (640, 480))
THOUSAND = Frame("thousand", (640, 480))
MODEL = Frame("model", (640, 480), (644, 476))

corner, side = st.integers(0, 300), st.integers(1, 150)
boxes = st.builds(lambda x, y, w, h: (float(x), float(y), float(x + w), float(y + h)), corner, corner, side, side)
small = st.builds(lambda x, y: (10.0 * x, 10.0 * y, 10.0 * x + 20, 10.0 * y + 20), st.integers(0, 4), st.integers(0, 2))
labelled = st.lists(st.tuples(st.one_of(boxes, small), st.sampled_from(["cat", "dog"])), max_size=5)


def tokens(*boxes, label: str | None = None) -> str:
    return write_tokens([LabelledBox(box, label) for box in boxes])


def as_json(items) -> str:
    return write_json([LabelledBox(box, label) for box, label in items])


# Grounding


def test_grounding_golden():
    target = convert((157, 459, 208, 622), "thousand", "pixels", (640, 480))
    assert grounding(WOMAN, target, THOUSAND, finished=True) == pytest.approx({"format": 1.0, "iou": 1.0})
    half = tokens((0, 0, 10, 5), label="a")
    assert grounding(half, (0, 0, 10, 10), PIXELS, finished=True)["iou"] == pytest.approx(0.5)
    assert grounding(half, (0, 0, 10, 10), PIXELS, finished=True, squared=True)["iou"] == pytest.approx(0.25)


def test_the_space_is_what_the_frame_says():
    """The same numbers are another box in another space, and none is guessed."""
    text = "[100, 100, 500, 500]"
    for frame, target in [
        (PIXELS, (100, 100, 500, 500)),
        (THOUSAND, (64, 48, 320, 240)),
        (MODEL, (100 * 640 / 644, 100 * 480 / 476, 500 * 640 / 644, 500 * 480 / 476)),
    ]:
        assert grounding(text, target, frame, finished=True, form="plain") == pytest.approx({"format": 1, "iou": 1})
    fractions = "[0.1, 0.1, 0.5, 0.5]"
    assert grounding_box(fractions, THOUSAND) == pytest.approx((0.064, 0.048, 0.32, 0.24))
    with pytest.raises(ValueError, match="model_size"):
        grounding_box(text, Frame("model", (640, 480)))


@pytest.mark.parametrize(
    ("text", "form", "well"),
    [
        (tokens((1, 2, 30, 40), label="a"), "tokens", 1),
        (tokens((1, 2, 30, 40)), "tokens", 0),  # no label
        (tokens((1, 2, 30, 40), (1, 2, 3, 4), label="a"), "tokens", 0),  # two boxes
        ("<(1,2),(30,40)", "tokens", 0),  # Perception-R1's unescaped pattern pays for the first character
        ("", "tokens", 0),
        ("[1, 2, 30, 40]", "tokens", 0),
        ("[1, 2, 30, 40]", "plain", 1),
        ('[{"bbox_2d": [1, 2, 30, 40], "label": "a"}]', "json", 1),
        ('{"bbox_2d": [1, 2, 30, 40]}', "json", 0),
    ],
)
def test_format_of_grounding(text, form, well):
    target = (1.0, 2.0, 30.0, 40.0)
    parts = grounding(text, target, PIXELS, finished=True, form=form)
    assert parts == {"format": well, "iou": float("30" in text)}  # the box counts in whatever form it is written
    assert grounding(text, target, PIXELS, finished=False, form=form)["format"] == 0


def test_reversed_boxes_overlap_nothing():
    assert grounding("[30, 40, 1, 2]", (1, 2, 30, 40), PIXELS, finished=True, form="plain")["iou"] == 0


def test_thinking_asks_for_the_wrapping():
    text = f"<think>[9, 9, 99, 99]?</think><answer>{WOMAN.removesuffix('<|im_end|>')}</answer><|im_end|>"
    target = grounding_box(WOMAN, THOUSAND)
    assert grounding(text, target, THOUSAND, finished=True, thinking=True) == {"format": 1, "iou": 1}
    assert grounding(WOMAN, target, THOUSAND, finished=True, thinking=True) == {"format": 0, "iou": 1}
    assert grounding(text, target, THOUSAND, finished=True)["format"] == 0


@given(boxes, st.integers(-200, 200), st.integers(-200, 200), st.integers(0, 4))
def test_a_closer_box_is_never_worth_less(target, dx, dy, quarters):
    def at(share: float) -> str:
        x1, y1, x2, y2 = target
        return f"[{x1 + share * dx:.2f}, {y1 + share * dy:.2f}, {x2 + share * dx:.2f}, {y2 + share * dy:.2f}]"

    near, far = (
        grounding(at(share), target, PIXELS, finished=True, form="plain")["iou"] for share in (quarters / 4, 1.0)
    )
    assert near >= far - 1e-9


# Counting


def test_counting_golden():
    frame = Frame("pixels", (300, 400))  # diagonal 500, so a point is worth nothing from 50 pixels on
    targets = [(100.0, 100.0), (200.0, 200.0)]
    two = "(200,225),(100,100)"  # the second exact, the first 25 pixels off
    parts = counting(two, targets, frame, finished=True, form="points")
    assert parts == pytest.approx({"format": 1, "points": 0.75, "exact": 1})
    in_order = counting(two, targets, frame, finished=True, form="points", matching=False)
    assert in_order == pytest.approx({"format": 1, "points": 0, "exact": 1})
    three = counting(two + ",(0,0)", targets, frame, finished=True, form="points")
    assert three == pytest.approx({"format": 1, "points": 1.5 / 3, "exact": 0})
    missed = counting("(100,100)", targets, frame, finished=True, form="points")
    assert missed == pytest.approx({"format": 1, "points": 1 / 2, "exact": 0})
    wide = counting(two, targets, frame, finished=True, form="points", tau=0.2)
    assert wide["points"] == pytest.approx((1 + 0.75) / 2)


def test_boxes_count_by_their_centres():
    text = tokens((90, 90, 110, 110), label="cat")
    for target in [(100.0, 100.0), (80.0, 80.0, 120.0, 120.0)]:
        assert set(counting(text, [target], PIXELS, finished=True).values()) == {1.0}


@given(st.lists(boxes, max_size=5), st.booleans())
def test_perfect_counting_is_full(targets, matching):
    parts = counting(tokens(*targets), targets, PIXELS, finished=True, matching=matching)
    assert parts == pytest.approx(dict.fromkeys(parts, 1.0))


@given(st.lists(boxes, max_size=4), st.lists(boxes, max_size=4), st.randoms())
def test_order_does_not_matter_in_counting(predicted, targets, draw):
    shuffled = draw.sample(predicted, len(predicted))
    assert counting(tokens(*shuffled), targets, PIXELS, finished=True) == counting(
        tokens(*predicted), targets, PIXELS, finished=True
    )


@given(st.lists(boxes, max_size=4), st.lists(boxes, max_size=4))
def test_matching_is_never_worth_less_than_order(predicted, targets):
    free, bound = (
        counting(tokens(*predicted), targets, PIXELS, finished=True, matching=way)["points"] for way in (True, False)
    )
    assert free >= bound - 1e-9


def test_no_object():
    full, nothing = {"format": 1, "points": 1, "exact": 1}, {"format": 0, "points": 0, "exact": 0}
    assert counting("", [], PIXELS, finished=True) == full
    assert counting("", [], PIXELS, finished=False) == nothing
    assert counting("I see none", [], PIXELS, finished=True) == nothing
    assert counting(tokens((1, 2, 3, 4)), [], PIXELS, finished=True) == {"format": 1, "points": 0, "exact": 0}
    assert counting("", [(1.0, 2.0)], PIXELS, finished=True) == {"format": 1, "points": 0, "exact": 0}


# OCR


def test_ocr():
    assert ocr("kitten<|im_end|>", "sitting", finished=True) == pytest.approx({"format": 1, "similarity": 4 / 7})
    assert ocr(" a b\n", "a b", finished=True) == {"format": 1, "similarity": 1}
    assert ocr("a b", "a b", finished=False) == {"format": 0, "similarity": 1}
    assert ocr("", "a b", finished=True) == {"format": 0, "similarity": 0}
    assert ocr("", "", finished=True) == {"format": 1, "similarity": 1}
    thought = "<think>b?</think><answer>a</answer>"
    assert ocr(thought, "a", finished=True, thinking=True) == {"format": 1, "similarity": 1}


# Detection

CAT, DOG = ((0.0, 0.0, 10.0, 10.0), "cat"), ((20.0, 0.0, 30.0, 10.0), "dog")


def test_detection_golden():
    """One target hit with IoU 0.5 under another label, one missed, one box from nowhere."""
    predicted = [((0.0, 0.0, 10.0, 5.0), "dog"), ((300.0, 300.0, 310.0, 310.0), "cat")]
    parts = detection(as_json(predicted), [CAT, DOG], PIXELS, finished=True)
    assert parts == pytest.approx({"format": 1, "location": 0.5, "cls": 0, "count_f1": 2 / 4, "missing": -0.5})
    strict = detection(as_json(predicted), [CAT, DOG], PIXELS, finished=True, same_label=True)
    assert strict == {**parts, "count_f1": 0}


def test_order_is_what_matching_does_without():
    backwards = as_json([DOG, CAT])
    full = {"format": 1, "location": 1, "cls": 1, "count_f1": 1, "missing": 0}
    assert detection(backwards, [CAT, DOG], PIXELS, finished=True) == full
    in_order = detection(backwards, [CAT, DOG], PIXELS, finished=True, matching=False)
    assert in_order == {"format": 1, "location": 0, "cls": 0, "count_f1": 0, "missing": -1}


def test_labels_may_weigh_in_the_matching():
    """A worse box of the right class wins only with a bonus that outweighs the overlap."""
    predicted = [((0.0, 0.0, 10.0, 9.0), "dog"), ((0.0, 0.0, 10.0, 6.0), "cat")]
    by_overlap = detection(as_json(predicted), [CAT], PIXELS, finished=True)
    by_label = detection(as_json(predicted), [CAT], PIXELS, finished=True, label_bonus=1.0)
    assert (by_overlap["location"], by_overlap["cls"]) == pytest.approx((0.9, 0))
    assert (by_label["location"], by_label["cls"]) == pytest.approx((0.6, 1))
    # a label alone is no match
    away = as_json([((300.0, 300.0, 310.0, 310.0), "cat")])
    assert detection(away, [CAT], PIXELS, finished=True, label_bonus=1.0)["missing"] == -1


@given(labelled)
def test_perfect_detection_is_full(targets):
    full = {"format": 1, "location": 1, "cls": 1, "count_f1": 1, "missing": 0}
    for same_label, matching in itertools.product((True, False), repeat=2):
        parts = detection(as_json(targets), targets, PIXELS, finished=True, same_label=same_label, matching=matching)
        assert parts == pytest.approx(full)


@given(labelled, labelled, st.randoms())
def test_order_does_not_matter_in_detection(predicted, targets, draw):
    parts = detection(as_json(predicted), targets, PIXELS, finished=True)
    shuffled, reordered = draw.sample(predicted, len(predicted)), draw.sample(targets, len(targets))
    assert detection(as_json(shuffled), reordered, PIXELS, finished=True) == parts


def test_order_does_not_decide_between_equal_matchings():
    """IoU 1 + 0 or 1/2 + 1/2: one pair matched or two, and the sum is the same."""
    whole, upper, lower = (0.0, 0.0, 8.0, 8.0), (0.0, 0.0, 8.0, 4.0), (0.0, 4.0, 8.0, 8.0)
    predicted, expected = [(whole, "cat"), (lower, "cat")], [(whole, "dog"), (upper, "dog")]
    every = [
        detection(as_json(a), b, PIXELS, finished=True)
        for a in (predicted, predicted[::-1])
        for b in (expected, expected[::-1])
    ]
    assert all(parts == every[0] for parts in every)


@given(labelled, labelled)
def test_an_extra_box_away_from_all_costs_only_f1(predicted, targets):
    extra = ((600.0, 460.0, 610.0, 470.0), "cat")
    before, after = (
        detection(as_json(items), targets, PIXELS, finished=True) for items in (predicted, [*predicted, extra])
    )
    if before["count_f1"] > 0:
        assert after["count_f1"] < before["count_f1"]
    if predicted and targets:
        assert {**after, "count_f1": 0} == pytest.approx({**before, "count_f1": 0})


def test_means_over_all_boxes_do_not_pay_for_leaving_one_out():
    """The released text's means over matched pairs are full for one good box of two; over all they are half."""
    good, loose = CAT, ((DOG[0][0], DOG[0][1], DOG[0][2], DOG[0][3] + 40.0), DOG[1])
    for predicted, matched, all_of in (
        ([good], (1.0, 1.0), (0.5, 0.5)),
        ([good, loose], (None, 1.0), (None, 1.0)),
        ([good, DOG, ((600.0, 460.0, 610.0, 470.0), "cat")], (1.0, 1.0), (2 / 3, 2 / 3)),
    ):
        parts = {
            over: detection(as_json(predicted), [CAT, DOG], PIXELS, finished=True, over=over)
            for over in ("matched", "all")
        }
        for over, (location, cls) in (("matched", matched), ("all", all_of)):
            assert location is None or parts[over]["location"] == pytest.approx(location)
            assert parts[over]["cls"] == pytest.approx(cls)
        rest = [{k: v for k, v in p.items() if k not in ("location", "cls")} for p in parts.values()]
        assert rest[0] == rest[1]


def test_an_image_without_objects():
    full = {"format": 1, "location": 1, "cls": 1, "count_f1": 1, "missing": 0}
    nothing = dict.fromkeys(full, 0.0)
    assert detection("```json\n[]\n```", [], PIXELS, finished=True) == full
    assert detection("[]", [], PIXELS, finished=False) == nothing
    assert detection("nothing here", [], PIXELS, finished=True) == nothing
    assert detection('[{"box": 1}]', [], PIXELS, finished=True) == nothing
    assert detection(as_json([CAT]), [], PIXELS, finished=True) == {**nothing, "format": 1}
    assert detection("[]", [CAT], PIXELS, finished=True) == {**nothing, "format": 1, "missing": -1}


@given(labelled, labelled, st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3))
def test_a_box_in_a_crowd_has_neither_reward_nor_penalty(predicted, targets, places):
    """Boxes in a crowd beside everything else change no part, and boxes half outside or of another label do."""
    crowd = ((1000.0, 0.0, 1100.0, 100.0), "cat")
    small = [(1000.0 + 10 * x, 10.0 * y, 1010.0 + 10 * x, 10.0 * y + 10) for x, y in places]
    for matching, over in itertools.product((True, False), ("matched", "all")):

        def parts(items, crowds=(), matching=matching, over=over):
            return detection(
                as_json(items), targets, PIXELS, finished=True, matching=matching, over=over, crowds=crowds
            )

        without = parts(predicted)
        assert parts(predicted, [crowd]) == without
        assert parts([*predicted, *((box, "cat") for box in small)], [crowd]) == without
        for other in ([(box, "dog") for box in small], [((1060.0, 0.0, 1160.0, 90.0), "cat")]):
            assert parts([*predicted, *other], [crowd]) == parts([*predicted, *other])


def test_a_target_in_front_of_a_crowd_is_rewarded_as_without_it():
    crowd = ((0.0, 0.0, 640.0, 480.0), CAT[1])
    loose = ((CAT[0][0], CAT[0][1], CAT[0][2], CAT[0][3] + 40.0), CAT[1])
    for answer in ([CAT], [loose]):
        plain = detection(as_json(answer), [CAT], PIXELS, finished=True)
        assert detection(as_json(answer), [CAT], PIXELS, finished=True, crowds=[crowd]) == plain
    inside = ((600.0, 440.0, 630.0, 470.0), CAT[1])
    plain = detection(as_json([CAT]), [CAT], PIXELS, finished=True)
    assert detection(as_json([CAT, inside]), [CAT], PIXELS, finished=True, crowds=[crowd]) == plain
    assert detection(as_json([inside]), [], PIXELS, finished=True, crowds=[crowd]) == {**plain, "missing": 0}


def test_tokens_can_detect_too():
    text = write_tokens([LabelledBox(box, label) for box, label in (CAT, DOG)])
    assert detected_boxes(text, PIXELS, "tokens") == ([CAT, DOG], True)
    assert detected_boxes(tokens((0, 0, 10, 10)), PIXELS, "tokens") == ([], False)
    scaled = as_json([(convert(CAT[0], "pixels", "model", (640, 480), (6400, 4800)), "cat")])
    assert detected_boxes(scaled, Frame("model", (640, 480), (6400, 4800))) == ([CAT], True)


# All


@given(texts, labelled, st.booleans(), st.booleans(), st.booleans())
def test_any_text_is_scored_within_bounds(text, targets, matching, thinking, finished):
    box = targets[0][0] if targets else (1.0, 2.0, 3.0, 4.0)
    every = [ocr(text, "gold", finished=finished, thinking=thinking)]
    for form in ("tokens", "json", "plain"):
        every += [
            grounding(text, box, MODEL, finished=finished, form=form, thinking=thinking),
            counting(
                text, [b for b, _ in targets], MODEL, finished=finished, form=form, matching=matching, thinking=thinking
            ),
            *(
                detection(
                    text, targets, MODEL, finished=finished, form=form, matching=matching, over=over, thinking=thinking
                )
                for over in ("matched", "all")
            ),
        ]
    for parts in every:
        assert parts.keys() >= {"format"}
        for name, value in parts.items():
            assert type(value) is float, name
            assert (-1 if name == "missing" else 0) <= value <= 1, name
            assert name == "missing" or not math.copysign(1, value) < 0


def test_total():
    parts = {"format": 1.0, "iou": 0.5}
    assert total(parts, {"format": 0.5, "iou": 2.0}) == 1.5
    for weights in ({"format": 1.0}, {"format": 1.0, "iou": 1.0, "exact": 1.0}):
        with pytest.raises(ValueError, match="iou"):
            total(parts, weights)


def test_the_reward_of_grounding_is_the_papers():
    """IoU squared plus format, weight 1 each."""
    text = tokens((0, 0, 10, 5), label="a")
    parts = grounding(text, (0, 0, 10, 10), PIXELS, finished=True, squared=True)
    assert total(parts, {"format": 1.0, "iou": 1.0}) == pytest.approx(1 + iou((0, 0, 10, 5), (0, 0, 10, 10)) ** 2)
