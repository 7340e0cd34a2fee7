"""Distances of texts: a plain table for edit distance, NLTK for BLEU and METEOR."""

from __future__ import annotations

import random
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from nltk.translate.bleu_score import sentence_bleu
from nltk.translate.meteor_score import meteor_score

from stepstack.scoring.text.similarity import bleu, meteor, normalised_edit_distance, word_overlap, words

short = st.text(alphabet="abc", max_size=12)
WORDS = ("The", "the", "cat", "cats", "sat", "sitting", "sits", "on", "running", "runs", "mat", ".")
sentences = st.lists(st.sampled_from(WORDS), max_size=14)


class NoWordNet:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> list:
        return []


def table(a, b) -> int:
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y)))
        rows.append(row)
    return rows[-1][-1]


@given(short, short)
def test_edit_distance_is_the_table(a, b):
    assert normalised_edit_distance(a, b) * max(len(a), len(b)) == pytest.approx(table(a, b))


@given(sentences, sentences)
def test_edit_distance_of_words_is_the_table(a, b):
    assert normalised_edit_distance(a, b) * max(len(a), len(b)) == pytest.approx(table(a, b))


@given(st.integers(0, 10**6))
def test_edit_distance_of_long_texts(seed):
    draw = random.Random(seed)
    a = "".join(draw.choices("ab ", k=draw.randint(60, 140)))
    edited = list(a)
    for _ in range(draw.randint(0, 30)):
        edited[draw.randrange(len(edited))] = draw.choice(["", "a", "xy"])
    b = "".join(edited)
    assert normalised_edit_distance(a, b) * max(len(a), len(b)) == pytest.approx(table(a, b))


def test_a_page_takes_less_than_seconds():
    draw = random.Random(0)
    a, b = ("".join(draw.choices("abcdefgh", k=8000)) for _ in range(2))
    begin = time.process_time()
    assert 0 < normalised_edit_distance(a, b) < 1
    assert time.process_time() - begin < 2


def test_normalised_edit_distance():
    assert normalised_edit_distance("", "") == 0
    assert normalised_edit_distance("", "ab") == normalised_edit_distance("ab", "") == 1
    assert normalised_edit_distance("kitten", "sitting") == pytest.approx(3 / 7)
    assert normalised_edit_distance("a" * 9, "b") == 1
    assert normalised_edit_distance(["the", "cat", "sat"], ["a", "cat", "sat", "down"]) == 0.5
    assert normalised_edit_distance("\ud800a", "\ud801a") == 0.5  # half surrogates, as a model's bytes may decode to


def test_word_overlap():
    both = word_overlap(["a", "a", "b", "c"], ["a", "b", "d"])
    assert both == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert word_overlap(["a"], ["a", "b"]) == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3})
    assert set(word_overlap([], []).values()) == {1.0}
    assert set(word_overlap([], ["a"]).values()) == set(word_overlap(["a"], []).values()) == {0.0}


@given(sentences, sentences)
def test_bleu_is_nltks(prediction, gold):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of orders without overlap
        theirs = sentence_bleu([gold], prediction) if gold else 0.0
    assert bleu(prediction, gold) == pytest.approx(theirs, abs=1e-9)


def test_bleu_of_copies():
    assert bleu(["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "e"]) == 1
    assert bleu(["a", "b", "c"], ["a", "b", "c"]) == 0  # no 4-gram
    assert 0 < bleu(["a", "b", "c", "d"], ["a", "b", "c", "d", "e"]) < 1


@given(sentences, sentences)
def test_meteor_is_nltks_without_wordnet(prediction, gold):
    theirs = meteor_score([gold], prediction, stemmer=PorterStemmer(), wordnet=NoWordNet())
    assert meteor(prediction, gold) == pytest.approx(theirs, abs=1e-12)


def test_meteor_stems():
    assert meteor(["running"], ["Runs"]) == pytest.approx(0.5)
    assert meteor(["a", "b", "c", "d"], ["a", "b", "c", "d"]) == pytest.approx(1 - 0.5 / 64)
    assert meteor(["dog"], ["cat"]) == meteor([], ["cat"]) == meteor(["cat"], []) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two words", ["two", "words"]),
        ("今天 weather很好", ["今", "天", "weather", "很", "好"]),
        ("カタカナ", list("カタカナ")),
        ("cafe\u0301", ["café"]),
        ("ภาษา", list("ภาษา")),
        ("한국어 글", ["한국어", "글"]),
        ("", []),
    ],
)
def test_words_of_scripts_without_spaces_are_their_characters(text, expected):
    assert words(text) == expected


def test_one_wrong_character_of_a_line_costs_one_character():
    gold = "今天天气很好我们一起去公园散步吧明天也许会下雨所以要带伞出门最好早点走"
    wrong = gold.replace("伞", "车")
    assert word_overlap(words(gold), words(gold))["f1"] == bleu(words(gold), words(gold)) == 1
    assert word_overlap(words(wrong), words(gold))["f1"] == pytest.approx(1 - 1 / len(set(gold)))  # of distinct ones
    assert bleu(words(wrong), words(gold)) > 0.8
