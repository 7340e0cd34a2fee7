"""Readers of boxes: golden texts, any text at all, and time linear in it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepstack.scoring.vision.answers import (
    LabelledBox,
    boxes,
    first_box,
    json_boxes,
    mended,
    plain_boxes,
    points,
    token_boxes,
    unwrap,
    write_json,
    write_tokens,
)

# Perception-R1's grounding example, as Qwen2-VL writes it.
WOMAN = (
    "<|object_ref_start|>The woman holding a child<|object_ref_end|>"
    "<|box_start|>(157,459),(208,622)<|box_end|><|im_end|>"
)
FORMS = ("tokens", "json", "plain")
PIECES = [
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|im_end|>", "```json", "```"),
    *("<think>", "</think>", "<answer>", "</answer>", "[", "]", "(", ")", "{", "}", ",", ":", "-", ".", " ", "\n"),
    *(
        "1",
        "23",
        "9" * 40,
        "1e999",
        "NaN",
        "true",
        "null",
        '"bbox_2d"',
        '"label"',
        '"a"',
        "(1,2)",
        "(3,4)",
        "٣",
        "\ud800",
    ),
    '{"bbox_2d": [1, 2, 3, 4], "label": "a"}',
]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))


def test_tokens_golden():
    assert token_boxes(WOMAN) == ([LabelledBox((157, 459, 208, 622), "The woman holding a child")], True)
    two = "<|box_start|>(1,2),(3,4)<|box_end|><|box_start|>(5,6),(7,8)<|box_end|>"
    assert token_boxes(two) == ([LabelledBox((1, 2, 3, 4)), LabelledBox((5, 6, 7, 8))], True)
    shared = f"<|object_ref_start|>cat < dog<|object_ref_end|>{two}\n<|object_ref_start|>b<|object_ref_end|>{two}"
    result, well = token_boxes(shared)
    assert well
    assert [item.label for item in result] == ["cat < dog", "cat < dog", "b", "b"]
    assert token_boxes("<|im_end|>") == token_boxes("") == ([], True)


@pytest.mark.parametrize(
    "text",
    [
        "<",  # Perception-R1's own pattern has its | unescaped: any text that begins with < passes it
        "<|object_ref_start|>",
        "<anything at all>",
        "object_ref_start",
        "x" + WOMAN,
        WOMAN + "x",
        WOMAN.replace("<|box_end|>", ""),
        WOMAN.replace("(157,459)", "(157;459)"),
        WOMAN.replace("(157,459)", "(157,459,3)"),
        WOMAN.replace("157", "1234567890"),
        WOMAN.replace("|", ""),
        WOMAN.replace("<|box_start|>(157,459),(208,622)<|box_end|>", ""),  # a label without a box
        "<|object_ref_start|>a<|object_ref_end|>" + WOMAN,
    ],
)
def test_not_well_formed_tokens(text):
    assert not token_boxes(text)[1]


def test_items_are_read_where_the_form_is_broken():
    assert [item.box for item in token_boxes("see " + WOMAN)[0]] == [(157, 459, 208, 622)]


def test_json_golden():
    entries = '{"bbox_2d": [1, 2.5, -3, 4], "label": "person"},\n\t{"bbox_2d": [5,6,7,8], "label": " a b "}'
    text = f"```json\n[\n\t{entries}\n]\n```"
    result = [LabelledBox((1, 2.5, -3, 4), "person"), LabelledBox((5, 6, 7, 8), "a b")]
    assert json_boxes(text + "<|im_end|>") == (result, True)
    assert json_boxes(text.strip("`").removeprefix("json")) == (result, True)
    assert json_boxes("Here:\n" + text) == (result, False)
    assert json_boxes(text + "\nDone.") == (result, False)
    assert json_boxes(text[:-3]) == ([], False)
    assert json_boxes("[]") == json_boxes("```json\n[]\n```") == ([], True)


@pytest.mark.parametrize(
    "entry",
    [
        '{"bbox_2d": [1, 2, 3], "label": "a"}',
        '{"bbox_2d": [1, 2, 3, true], "label": "a"}',
        '{"bbox_2d": [1, 2, 3, "4"], "label": "a"}',
        '{"bbox_2d": [1, 2, 3, NaN], "label": "a"}',
        '{"bbox_2d": [1, 2, 3, -Infinity], "label": "a"}',
        '{"bbox_2d": [1, 2, 3, 1e10], "label": "a"}',
        '{"bbox_2d": [1, 2, 3, ' + "9" * 5000 + '], "label": "a"}',
        '{"bbox_2d": [1, 2, 3, 4], "label": 5}',
        '{"bbox_2d": [1, 2, 3, 4], "name": "a"}',
        '{"bbox_2d": [1, 2, 3, 4]}',
        '{"bbox_2d": [1, 2, 3, 4], "label": "a", "score": 1}',
        "[1, 2, 3, 4]",
        "null",
    ],
)
def test_a_bad_entry_gives_no_item_and_breaks_the_form(entry):
    good = '{"bbox_2d": [1, 2, 3, 4], "label": "a"}'
    assert json_boxes(f"[{entry}, {good}]") == ([LabelledBox((1, 2, 3, 4), "a")], False)


@pytest.mark.parametrize("text", ["", "{}", "7", '"[]"', "null", '[{"bbox_2d": [1,2', "[" * 200_000])
def test_no_json_list(text):
    assert json_boxes(text) == ([], False)


def test_plain_golden():
    four = [LabelledBox((1, 2, 3, 4))]
    assert plain_boxes("[1, 2, 3, 4]") == plain_boxes("(1,2,3,4)") == plain_boxes("(1,2),(3,4)\n") == (four, True)
    assert plain_boxes("[0.1,-2,3.25,4], (1,2),(3,4)") == ([LabelledBox((0.1, -2, 3.25, 4)), *four], True)
    assert plain_boxes("the box is [1,2,3,4]") == (four, False)
    assert plain_boxes("") == plain_boxes("[1,2,3]") == ([], False)


def test_points_golden():
    assert points("(1,2), (3.5,-4)<|im_end|>") == ([(1, 2), (3.5, -4)], True)
    assert points("") == ([], True)
    assert points("none") == ([], False)
    assert points("at (1,2)") == ([(1, 2)], False)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (WOMAN, (157, 459, 208, 622)),
        ("(9,9),(9,9) (5,6,7,8) [1,2,3,4]", (1, 2, 3, 4)),
        ("(9,9),(9,9) (5,6,7,8)", (5, 6, 7, 8)),
        ('{"bbox_2d": [1, 2, 3, 4]}', (1, 2, 3, 4)),
        ("[0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),  # as it stands: no guess that 0..1 was meant
        ("1, 2, 3, 4", None),
    ],
)
def test_first_box(text, box):
    assert first_box(text) == box


@pytest.mark.parametrize(
    ("text", "answer", "well"),
    [
        ("<think>why</think><answer>[1]</answer><|im_end|>", "[1]", True),
        ("<think>\nwhy\n</think>\n<answer>\n[1]\n</answer>\n", "[1]", True),
        ("<think></think><answer></answer>", "", True),
        ("<answer>[1]</answer>", "[1]", False),
        ("<think>why</think>[1]", "[1]", False),
        ("<think>why</think>so<answer>[1]</answer>", "[1]", False),
        ("<think>why</think><answer>[1]</answer> bye", "[1]", False),
        ("<think>why</think><answer>[1]", "[1]", False),
        ("<think>a</think><answer>0</answer><think>b</think><answer>1</answer>", "1", False),
        ("[1]", "[1]", False),
    ],
)
def test_unwrap(text, answer, well):
    assert unwrap(text) == (answer, well)


@given(texts)
def test_no_text_raises_and_all_numbers_are_finite(text):
    for form in FORMS:
        result, well = boxes(text, form)
        assert isinstance(well, bool)
        assert all(abs(x) <= 1e9 for item in result for x in item.box)
    assert all(abs(x) <= 1e9 for point in points(text)[0] for x in point)
    assert unwrap(text)[0] in text
    first_box(text)


@pytest.mark.parametrize(
    "piece", [*PIECES, "<|object_ref_start|>a", "<|box_start|>(1,2),", "[1,2,3,", "(1,2),(3,", "<think> "]
)
def test_time_is_linear(piece):
    text = piece * (400_000 // len(piece))
    begin = time.process_time()
    for form in FORMS:
        boxes(text, form)
    points(text)
    first_box(text)
    unwrap(text)
    assert time.process_time() - begin < 5  # a quadratic reader takes minutes


labels = st.text().map(str.strip).filter(lambda label: "<|" not in label and "```" not in label)
whole = st.integers(0, 1000).map(float)
labelled = st.lists(st.builds(LabelledBox, st.tuples(whole, whole, whole, whole), labels))


@given(labelled)
def test_what_is_written_is_read(result):
    assert json_boxes(write_json(result)) == (result, True)
    assert token_boxes(write_tokens(result)) == (result, True)


def test_what_cannot_be_written():
    for label in ("a<|b", " a", None):
        with pytest.raises(ValueError, match="cannot be written"):
            write_tokens([LabelledBox((0, 0, 1, 1), "a"), LabelledBox((0, 0, 1, 1), label)])
    for label in ("```", None):
        with pytest.raises(ValueError, match="cannot be written"):
            write_json([LabelledBox((0, 0, 1, 1), label)])
    assert write_tokens([LabelledBox((0, 0, 1.4, 1))]) == "<|box_start|>(0,0),(1,1)<|box_end|>"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('{"bbox_2d": [1, 2, 3, 4], "label": "cat"}', 1),
        ('```json\n{"bbox_2d": [1, 2, 3, 4], "label": "cat"}\n```', 1),
        ("[{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}]", 1),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat", "score": 0.5}]', 1),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', 1),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [5, 6, 7, 8], "label": "dog"}, {"bbox', 2),
        ('I see [{"bbox_2d": [1, 2, 3, 4], "label": "cat"}] here', 1),
        ('{"bbox_2d": [1, 2, 3], "label": "cat"}', 0),
        ('{"bbox_2d": [1, 2, 3, true], "label": "cat"}', 0),
        ('{"bbox_2d": [1, 2, 3, 1e999], "label": "cat"}', 0),
        ("{" * 3000, 0),
        ("no box", 0),
    ],
)
def test_a_judge_counts_what_an_ill_formed_answer_found(text, count):
    again, well = mended(text, "json")
    assert not well
    assert len(boxes(again, "json")[0]) == count


def test_what_is_well_formed_is_left_as_it_is():
    text = write_json([LabelledBox((1, 2, 3, 4), "cat")])
    assert mended(text, "json") == (text, True)
    assert mended("(1,2),(3,4) and more", "plain")[0] == "(1,2),(3,4) and more"
