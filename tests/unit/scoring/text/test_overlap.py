"""Overlap of training rows and questions: what counts, what does not, and that a large set takes seconds."""

from __future__ import annotations

import random
import time

import pytest

from stepstack.scoring.text.overlap import Index, normal_text, overlap

LONG = "A train leaves the old station at noon and travels north at sixty miles per hour until it stops"
CHINESE = "小明从家里出发去学校每小时走五公里问他几小时到"


def row(train, evals, **options):
    return overlap(train, {"aime": evals}, **options)[0]


def test_table():
    evals = {"aime": [LONG, "Find $2+3$.", "untouched"], "math": ["other"]}
    first, second = overlap([f"so {LONG}", "find 2+3.", "find 2-3.", LONG], evals)
    examples = first.pop("examples")
    assert first == {
        "eval": "aime",
        "questions": 3,
        "short": 2,
        "exact": 2,
        "ngram": 0,
        "train_rows": 3,
        "share": 2 / 3,
    }
    assert second == {
        "eval": "math",
        "questions": 1,
        "short": 1,
        "exact": 0,
        "ngram": 0,
        "train_rows": 0,
        "share": 0,
        "examples": [],
    }
    assert examples == [
        {"train": 3, "question": 0, "kind": "exact", "text": LONG},  # row 0 shares words, row 3 is the same
        {"train": 1, "question": 1, "kind": "exact", "text": "find 2+3."},
    ]


def test_examples_name_the_shared_words_and_are_few():
    result = row([f"so {LONG}", f"and {LONG}"], [LONG])
    assert (result["exact"], result["ngram"], result["train_rows"]) == (0, 1, 2)
    words = " ".join(LONG.lower().split()[:13])
    assert result["examples"] == [{"train": 0, "question": 0, "kind": "ngram", "text": words}]
    questions = [f"{i} {LONG}" for i in range(5)]
    assert len(row(questions, questions, examples=2)["examples"]) == 2
    assert row(questions, questions, examples=2)["exact"] == 5


@pytest.mark.parametrize(
    ("train", "question", "kind"),
    [
        ("Find  $X+1$ .", "find x+1.", "exact"),  # case, white space, dollar signs
        ("find ｘ", "find x", "exact"),  # a full-width letter
        ("find x+1", "find x-1", None),  # operators count
        ("find x+1 now", "find x+1", None),  # contained, but short
        (" ".join(LONG.split()[:13]), LONG, "ngram"),
        (" ".join(LONG.split()[:12]), LONG, None),
        (LONG.replace(" ", ", ").upper(), LONG, "ngram"),  # punctuation does not count for words
        (f"题目{CHINESE}", f"{CHINESE}吗", "ngram"),
    ],
)
def test_what_overlaps(train, question, kind):
    result = row([train], [question])
    assert (result["exact"], result["ngram"]) == (int(kind == "exact"), int(kind == "ngram"))


def test_short_questions_are_counted_by_their_words():
    result = row(["6-3+1", "x"], ["6-3+1", "one two three", LONG], n=3)
    assert (result["short"], result["exact"]) == (0, 1)
    assert row([], ["6-3+1"], n=4)["short"] == 1
    with pytest.raises(ValueError, match="ngram=0 must be at least 1"):
        Index({}, 0)


def test_normal_text_is_stricter_than_overlap():
    assert normal_text("What  is\n$1+1$? ") == "What is $1+1$?"
    assert normal_text("What is 1+1?") != normal_text("what is 1+1?")


def test_a_large_set_takes_seconds():
    """A tenth of ORZ's 129k rows, 60 words each, against 1000 questions."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(2000)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(13_900)]
    questions, train = texts[:1000], texts[1000:]
    train[7], train[8] = questions[3], f"before {questions[4]} after"
    started = time.process_time()
    result = row(train, questions)
    assert time.process_time() - started < 6  # a minute for all of them
    assert (result["exact"], result["ngram"], result["train_rows"]) == (1, 1, 2)
