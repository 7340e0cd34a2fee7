"""M-DocEval on tables made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepstack.scoring import documents
from stepstack.scoring.documents import Claim, Paragraph, SummaryGold, exact, image_object, parse, score

GOLD = SummaryGold(
    paragraphs=(
        Paragraph("task 11. data 12.", "2", "ramp", ("task 11.", "data 12.")),
        Paragraph("model 13. loss 14.", "None", "", ("model 13.", "loss 14.")),
        Paragraph("score 15. gain 16.", "1", "peak", ("score 15.", "gain 16.")),
        Paragraph("limit 17. next 18.", "None", "", ("limit 17.", "next 18.")),
    ),
    figures={"1": "peak", "2": "ramp", "3": "wave"},
    similar={"1": ("3",), "2": (), "3": ("1",)},
)
PERFECT = documents.write(GOLD.paragraphs)


def answer(**changes: tuple[str | None, str | None]) -> str:
    """The perfect answer with other paragraphs: p1=(summary, image), None keeping what there is."""
    paragraphs = list(GOLD.paragraphs)
    for name, (summary, image) in changes.items():
        place = int(name[1:]) - 1
        old = paragraphs[place]
        paragraphs[place] = replace(
            old, summary=old.summary if summary is None else summary, image=old.image if image is None else image
        )
    return documents.write(paragraphs)


def figures(text: str, **expected: float) -> None:
    found = score(text, GOLD)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_written_form_is_the_published_one():
    rows = json.loads(PERFECT)
    assert rows[0] == {"summary": "task 11. data 12.", "image": {"imageRef": "2", "imageCaption": "ramp"}}
    assert [row["image"]["imageRef"] for row in rows] == ["2", "None", "1", "None"]


def test_a_perfect_answer():
    figures(
        PERFECT,
        total=1.0,
        parse=1.0,
        following=1.0,
        following_strict=1.0,
        completeness=1.0,
        accuracy=1.0,
        ts=1.0,
        omatch=1.0,
        jaccard=1.0,
        cited=2.0,
        matched=2.0,
        wrong=0.0,
        bare=2.0,
        bare_right=2.0,
        chance=2 / 3,
    )


@pytest.mark.parametrize("text", ["", "no list", "[1, 2", '[{"summary": "task 11."', PERFECT + " and so on", "{}"])
def test_what_cannot_be_read_is_nothing(text):
    figures(text, total=0.0, parse=0.0, following=0.0, ts=0.0, omatch=0.0, jaccard=0.0, matched=0.0, cited=2.0)


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{PERFECT}\n```",
        f"```\n{PERFECT}\n```",
        f"  {PERFECT}\n",
        f"{PERFECT}<|im_end|>",
        f"The summary:\n{PERFECT}",
        json.dumps(json.loads(PERFECT), indent=2),
    ],
)
def test_fences_white_space_and_words_before_the_list_do_not_matter(text):
    figures(text, total=1.0)


# (answer, mean of the four checks): list, of four, keys and types, references that exist
FOLLOWING = [
    (answer(p1=(None, "7")), 0.75),
    (answer(p1=(None, "none")), 0.75),
    (documents.write(GOLD.paragraphs[:3]), 0.75),
    (documents.write([*GOLD.paragraphs, GOLD.paragraphs[0]]), 0.75),
    (PERFECT.replace('"imageRef":"2"', '"imageRef":2'), 0.5),
    (PERFECT.replace('"imageCaption":"ramp"', '"caption":"ramp"'), 0.5),
    ("[]", 0.25),
    ('["a", "b", "c", "d"]', 0.0),  # no list of paragraphs begins
    ('[{"a": 1}, "b", null, 3]', 0.5),
]


@pytest.mark.parametrize(("text", "mean"), FOLLOWING)
def test_instruction_following(text, mean):
    figures(text, following=mean, following_strict=0.0)


def test_text_score_is_the_f1_of_completeness_and_accuracy():
    text = answer(p1=("task 11. data 19.", None), p2=("model 13.", None))
    figures(text, completeness=(0.5 + 0.5 + 1 + 1) / 4, accuracy=(0.5 + 1 + 1 + 1) / 4)
    figures(text, ts=2 * 0.75 * 0.875 / (0.75 + 0.875))
    figures(answer(p1=("", None)), completeness=0.75, accuracy=0.75, ts=0.75)


def test_statements_of_the_reference_beside_its_key_points_are_accurate():
    cited = replace(GOLD.paragraphs[0], summary="task 11. the ramp shows it. data 12.")
    gold = replace(GOLD, paragraphs=(cited, *GOLD.paragraphs[1:]))
    assert score(documents.write(gold.paragraphs), gold)["accuracy"] == 1.0
    assert score(PERFECT, gold)["completeness"] == 1.0
    assert score(answer(p1=("task 11. the peak shows it. data 12.", None)), gold)["accuracy"] == pytest.approx(11 / 12)


def test_a_reference_without_key_points_has_its_sentences():
    assert Paragraph("One is so. Two is not!").points == ("One is so.", "Two is not!")


# (images of the four paragraphs, omatch, jaccard, matched, wrong, confused, bare_right); true: 2 None 1 None
IMAGES = [
    (("None", "None", "None", "None"), 0.5, 0.0, 0, 0, 0, 2),
    (("1", "None", "2", "None"), 0.5, 1.0, 0, 2, 0, 2),  # exchanged: the right figures in the wrong places
    (("2", "None", "3", "None"), 0.75, 1 / 3, 1, 1, 1, 2),  # 3 is similar to 1
    (("3", "None", "1", "None"), 0.75, 1 / 3, 1, 1, 0, 2),  # but not to 2
    (("2", "3", "1", "1"), 0.5, 2 / 3, 2, 0, 0, 0),
    (("9", "None", "1", "None"), 0.75, 0.5, 1, 0, 0, 2),  # a figure that does not exist is no choice of one
]


@pytest.mark.parametrize(("images", "omatch", "jaccard", "matched", "wrong", "confused", "bare"), IMAGES)
def test_image_figures(images, omatch, jaccard, matched, wrong, confused, bare):
    text = answer(**{f"p{n + 1}": (None, image) for n, image in enumerate(images)})
    figures(text, omatch=omatch, jaccard=jaccard, matched=matched, wrong=wrong, confused=confused, bare_right=bare)
    found = score(text, GOLD, weight=0.2)
    assert found["is"] == pytest.approx(0.2 * omatch + 0.8 * jaccard)
    assert found["total"] == pytest.approx(0.1 * found["following"] + 0.45 + 0.45 * found["is"])


def test_without_figures_the_jaccard_similarity_of_nothing_and_nothing_is_1():
    bare = replace(GOLD, paragraphs=tuple(replace(p, image="None", caption="") for p in GOLD.paragraphs))
    assert score(documents.write(bare.paragraphs), bare)["jaccard"] == 1.0
    assert score("", bare)["jaccard"] == 0.0
    assert score("", replace(bare, figures={}))["chance"] == 0.0


def test_figures_that_are_listed_first():
    listed = image_object("1", "peak") + image_object("2", "wave") + image_object("3", "wave")
    figures(listed + PERFECT, total=1.0, figures=3.0, listed=2.0)
    figures(PERFECT, figures=3.0, listed=0.0)
    assert parse(image_object("1", "a") + image_object("1", "b")).listed == {"1": "a"}


def test_the_judge_is_asked_once_for_all():
    asked = []

    def judge(claims):
        asked.append(list(claims))
        return [True] * len(claims)

    rows = documents.evaluate([(PERFECT, GOLD), ("", GOLD), (answer(p1=("lies.", None)), GOLD)], judge)
    [claims] = asked
    assert len(claims) == 16 + 0 + 15
    assert claims[0] == Claim("task 11.", "task 11. data 12.")
    assert [row["ts"] for row in rows] == [1.0, 0.0, 1.0]


def test_the_exact_judge_compares_whole_sentences():
    claims = [Claim("Task 11", "data 12.  task 11. x"), Claim("task 1.", "task 11."), Claim("task 11.", "")]
    assert exact(claims) == [True, False, False]


def test_gold_is_read_as_it_was_written():
    assert SummaryGold.read(GOLD.write()) == GOLD


@given(st.text())
def test_no_text_raises(text):
    for wild in (text, "[{" + text, PERFECT + text, text + PERFECT):
        assert 0 <= score(wild, GOLD)["total"] <= 1


def test_huge_and_deep_texts():
    for text in ("[" * 100_000, "[{" * 50_000, '[{"summary": ' + "9" * 100_000, "{" * 100_000, "[ " * 100_000):
        assert score(text, GOLD)["total"] == 0.0
