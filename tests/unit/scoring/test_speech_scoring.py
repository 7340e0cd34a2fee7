"""Word errors against jiwer and by hand, normalisers, filters at their thresholds, keep rates, silence."""

import random

import numpy as np
import pytest

from stepstack.scoring import speech
from stepstack.scoring.speech import JudgedTake, TakeFilter, TakeMeasures

PASSES = TakeMeasures(wer=0.0, similarity=0.9, dnsmos=3.5, duration=1.0, silence=0.1)
ALL = TakeFilter(wer=0.1, similarity=0.75, dnsmos=3.0, duration=(0.6, 1.6), silence=0.5)


@pytest.mark.parametrize(
    ("normaliser", "text", "words"),
    [
        ("seed-en", "It's 50, \"isn't\" it?", ["it's", "50", "isn't", "it"]),
        ("seed-en", "red-hot", ["redhot"]),
        ("seed-zh", "你好，世界！ ok", ["你", "好", "世", "界", "o", "k"]),
        ("spoken-en", "The 30 red-hot pans.", ["the", "thirty", "red", "hot", "pans"]),
        ("spoken-en", "1,250 'quoted' don’t", ["one", "thousand", "two", "hundred", "fifty", "quoted", "don't"]),
        ("spoken-en", "0 19 100 1000000", ["zero", "nineteen", "one", "hundred", "1000000"]),
        ("spoken-en", "", []),
    ],
)
def test_normalisers(normaliser, text, words):
    assert speech.normal_words(text, normaliser) == words


def test_marks_by_hand():
    found = speech.word_errors("open the red box now", "Open a red red box", "spoken-en")
    assert (found.words, found.replaced, found.deleted, found.inserted) == (5, 1, 1, 1)
    assert found.rate == pytest.approx(3 / 5)
    kinds = [kind for _, kind in found.marks]
    assert sorted(set(kinds)) == ["delete", "equal", "insert", "replace"]
    assert [word for word, kind in found.marks if kind == "equal"] == ["open", "red", "box"]


@pytest.mark.parametrize(("text", "heard", "rate"), [("", "", 0), ("", "a b", 2), ("a b", "", 1), ("a", "b c d", 3)])
def test_empty_texts(text, heard, rate):
    assert speech.word_errors(text, heard, "spoken-en").rate == rate


def test_rates_are_means_over_utterances():
    long = speech.word_errors("a b c d e f g h i j", "a b c d e f g h i j", "spoken-en")
    short = speech.word_errors("a", "x y", "spoken-en")
    rates = speech.error_rates([long, short])
    assert rates.mean == pytest.approx(1.0)
    assert rates.corpus == pytest.approx(2 / 11)
    assert rates.failed == 0.5
    with pytest.raises(ValueError, match="no utterances"):
        speech.error_rates([])


def test_jiwer_counts_the_same():
    jiwer = pytest.importorskip("jiwer", reason="jiwer is not installed: pip install jiwer")
    rng = random.Random(0)
    for _ in range(300):
        said = " ".join(rng.choices("abcde", k=rng.randint(1, 12)))
        heard = " ".join(rng.choices("abcde", k=rng.randint(1, 12)))
        expected = jiwer.process_words(said, heard)
        found = speech.word_errors(said, heard, "seed-en")
        assert found.rate == pytest.approx(expected.wer)
        assert found.errors == expected.substitutions + expected.deletions + expected.insertions


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, ()),
        ({"wer": 0.1}, ()),
        ({"wer": 0.11}, ("wer",)),
        ({"similarity": 0.74, "dnsmos": 2.9}, ("similarity", "dnsmos")),
        ({"duration": 0.59}, ("duration",)),
        ({"duration": 1.61}, ("duration",)),
        ({"silence": 0.51}, ("silence",)),
        ({"ended": False}, ("ended",)),
        ({"dnsmos": float("nan")}, ("dnsmos",)),
    ],
)
def test_filters_at_their_thresholds(changes, refused):
    values = {name: getattr(PASSES, name) for name in TakeMeasures.__dataclass_fields__}
    assert speech.failed_filters(TakeMeasures(**values | changes), ALL) == refused


def test_a_filter_that_is_not_asked_needs_no_measure():
    nothing = TakeFilter(wer=None, duration=None, silence=None, ended=False)
    assert speech.failed_filters(TakeMeasures(ended=False), nothing) == ()
    with pytest.raises(ValueError, match=r"\['similarity'\]"):
        speech.failed_filters(TakeMeasures(wer=0.0, dnsmos=4.0, duration=1.0, silence=0.0), ALL)
    with pytest.raises(ValueError, match="smaller"):
        TakeFilter(duration=(2.0, 1.0))


def test_keep_rates():
    takes = [
        JudgedTake("a", (), {"speaker": "x", "tag": "fast"}),
        JudgedTake("a", ("wer",), {"speaker": "x", "tag": "slow"}),
        JudgedTake("b", ("wer", "dnsmos"), {"speaker": "y", "tag": "slow"}),
    ]
    rows = {(row["by"], row["value"]): row for row in speech.keep_rates(takes)}
    assert rows["all", ""]["kept"] == 1
    assert rows["speaker", "x"]["rate"] == 0.5
    assert rows["tag", "slow"]["kept"] == 0
    assert (rows["filter", "wer"]["refused"], rows["filter", "wer"]["alone"]) == (2, 1)
    assert rows["filter", "dnsmos"]["alone"] == 0
    assert speech.texts_without_a_take(takes) == ["b"]
    assert speech.keep_rates([])[0]["rate"] == 0.0


def test_the_best_take_comes_first():
    good, wrong = PASSES, TakeMeasures(wer=0.2, similarity=0.99, dnsmos=5.0, duration=1.0)
    far = TakeMeasures(wer=0.0, similarity=0.9, dnsmos=3.5, duration=1.5)
    assert sorted([wrong, far, good], key=speech.take_order) == [good, far, wrong]


def test_codebook_use():
    assert speech.codebook_use([0, 1, 2, 3], 8) == {"used": 0.5, "perplexity": pytest.approx(4.0)}
    assert speech.codebook_use([], 8) == {"used": 0.0, "perplexity": 0.0}
    with pytest.raises(ValueError, match="codebook of 8"):
        speech.codebook_use([8], 8)


def test_silences():
    rate = 16000
    tone = 0.5 * np.sin(np.arange(rate // 2) * 0.3)
    wave = np.concatenate([np.zeros(1600), tone, np.zeros(4800), tone, np.zeros(3200)])
    before, inner, after = speech.silences(wave, rate)
    assert (before, inner, after) == pytest.approx((0.1, 0.3, 0.2), abs=0.011)
    assert speech.silences(np.zeros(1600), rate) == (0.1, 0.0, 0.0)
    assert speech.silences(np.zeros(0), rate) == (0.0, 0.0, 0.0)


def test_a_limit_of_nothing_is_a_limit():
    """Zero is a threshold, though it equals False."""
    limits = TakeFilter(wer=0.0, similarity=None, dnsmos=None, duration=None, silence=None, ended=False)
    assert speech.failed_filters(TakeMeasures(wer=0.1), limits) == ("wer",)
    assert speech.failed_filters(TakeMeasures(wer=0.0), limits) == ()
    with pytest.raises(ValueError, match=r"filters \['wer'\] ask for what was not measured"):
        speech.failed_filters(TakeMeasures(), limits)
