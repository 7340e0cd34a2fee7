"""The paired test against SciPy and against all sign flips."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stepstack.report import paired
from stepstack.report.paired import NotPaired, compare, sign_flip


def rows(*scores, problem="1+1"):
    """Rows of samples.jsonl: one question a sequence of scores."""
    return [
        {"index": index, "sample": number, "problem": f"{problem} {index}", "gold": "2", "score": score}
        for index, question in enumerate(scores)
        for number, score in enumerate(question)
    ]


def brute(differences):
    """All 2**n sign flips."""
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in _signs(len(differences))]
    return sum(total >= observed for total in sums) / len(sums)


def _signs(n):
    return itertools.product((-1, 1), repeat=n)


@pytest.mark.parametrize(("wins", "losses", "ties"), [(5, 0, 3), (12, 4, 20), (1, 1, 0), (40, 60, 7), (300, 220, 500)])
def test_one_sample_a_question_is_mcnemars_exact_test(wins, losses, ties):
    a = rows(*[[0.0]] * wins, *[[1.0]] * losses, *[[1.0]] * ties)
    b = rows(*[[1.0]] * wins, *[[0.0]] * losses, *[[1.0]] * ties)
    result = compare(a, b)
    assert (result.wins, result.losses, result.ties, result.exact) == (wins, losses, ties, True)
    assert result.p == pytest.approx(stats.binomtest(wins, wins + losses, 0.5).pvalue, rel=1e-9)
    assert result.difference == pytest.approx((wins - losses) / (wins + losses + ties))


def test_several_samples_against_scipys_permutation_test():
    random = np.random.default_rng(0)
    a, b = (random.integers(0, 2, (9, 4)).astype(float) for _ in range(2))
    result = compare(rows(*a.tolist()), rows(*b.tolist()))
    d = b.mean(1) - a.mean(1)
    oracle = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert result.exact
    assert result.p == pytest.approx(oracle.pvalue, rel=1e-9)
    assert result.difference == pytest.approx(d.mean())
    assert result.stderr == pytest.approx(stats.sem(d))
    assert (result.mean_a, result.mean_b) == (pytest.approx(a.mean()), pytest.approx(b.mean()))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fractions(-1, 1, max_denominator=12), min_size=1, max_size=9))
def test_all_sign_flips(differences):
    p, exact = sign_flip(differences)
    assert exact
    assert p == pytest.approx(brute(differences), rel=1e-12)
    assert 0 < p <= 1
    assert sign_flip([-d for d in differences]) == (p, True)


scores = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=2, max_size=2), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(scores, st.randoms(use_true_random=False))
def test_either_way_round_is_the_same(a, random):
    b = [random.choice(a) for _ in a]
    a[0], b[0] = [1.0, 0.0], [1.0, 1.0]
    one, other = compare(rows(*a), rows(*b)), compare(rows(*b), rows(*a))
    assert (one.p, one.wins, one.ties, one.unscored) == (other.p, other.losses, other.ties, other.unscored)
    assert one.difference == -other.difference
    assert one.n == one.wins + one.ties + one.losses
    assert one.n + one.unscored == len(a)


def test_no_difference_at_all():
    result = compare(rows([1.0, 0.0], [0.0, 0.0]), rows([0.0, 1.0], [0.0, 0.0]))
    assert (result.p, result.exact, result.ties, result.difference) == (1.0, True, 2, 0.0)
    assert result.words("before", "after").startswith("before and after score the same on average: ")


def test_samples_without_a_verdict_are_no_zeros():
    result = compare(rows([1.0, None], [0.0, 0.0], [None, None]), rows([1.0, 1.0], [1.0, None], [1.0, 1.0]))
    assert (result.n, result.unscored, result.ties, result.wins) == (2, 1, 1, 1)
    assert result.difference == 0.5
    assert result.stderr == pytest.approx(stats.sem([0.0, 1.0]))  # of the two questions with a verdict, not of three
    assert "1 without a verdict are left out" in result.words("a", "b")


@settings(max_examples=60, deadline=None)
@given(scores, st.randoms(use_true_random=False))
def test_the_standard_error_is_of_the_questions_that_count(a, random):
    b = [random.choice(a) for _ in a]
    a, b = [*a, [0.0, 1.0], [1.0, 1.0]], [*b, [1.0, 1.0], [None, None]]
    means = [[[s for s in question if s is not None] for question in side] for side in (a, b)]
    differences = [np.mean(y) - np.mean(x) for x, y in zip(*means, strict=True) if x and y]
    result = compare(rows(*a), rows(*b))
    assert (result.n, result.unscored) == (len(differences), len(a) - len(differences))
    assert result.difference == pytest.approx(np.mean(differences))
    assert result.stderr == pytest.approx(stats.sem(differences) if len(differences) > 1 else 0.0)


def test_thousands_of_wins_do_not_give_a_p_of_zero():
    result = compare(rows(*[[0.0]] * 3000), rows(*[[1.0]] * 3000))
    assert result.exact
    assert 0 < result.p < 1e-300


def test_scores_of_no_common_denominator_are_drawn_and_say_so():
    random = np.random.default_rng(1)
    d = random.normal(0.3, 1, 40)
    p, exact = sign_flip([Fraction(x) for x in d])
    assert not exact
    oracle = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=50_000, rng=2).pvalue
    assert p == pytest.approx(oracle, abs=0.01)
    assert sign_flip([-Fraction(x) for x in d]) == (p, False)
    result = compare(rows(*[[0.0]] * 40), rows(*[[x] for x in d]))
    assert not result.exact
    assert "100,000 random draws" in result.words("a", "b")


def test_the_draws_agree_with_the_exact_test(monkeypatch):
    differences = [Fraction(n, 16) for n in np.random.default_rng(3).integers(-10, 14, 60).tolist()]
    exact, _ = sign_flip(differences)
    monkeypatch.setattr(paired, "MAX_EXACT_ADDITIONS", 0)
    drawn, is_exact = sign_flip(differences)
    assert not is_exact
    assert drawn == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 1e5) ** 0.5)


def test_words_name_the_better_one():
    a, b = rows(*[[0.0]] * 40), rows(*[[1.0]] * 30, *[[0.0]] * 10)
    assert compare(a, b).words("before", "after") == (
        "after is better than before by 0.750 ± 0.069: after wins 30, ties 10, loses 0 of 40 questions. "
        "p = 1.9e-09 (exact sign-flip test): chance alone hardly gives such a difference."
    )
    assert compare(b, a).words("before", "after").startswith("before is better than after by 0.750 ± 0.069: ")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (rows([1.0], [1.0]), rows([1.0]), r"1 questions are in one only, such as 1 in the first"),
        (rows([1.0]), rows([1.0], problem="2+2"), r"question 0: problem differs: '1\+1 0' and '2\+2 0'"),
        (rows([1.0]), [{**rows([1.0])[0], "gold": "3"}], r"question 0: gold differs: '2' and '3'"),
        (rows([None]), rows([1.0]), "no question has a verdict on both sides"),
        ([], rows([1.0]), "the first evaluation has no samples"),
    ],
)
def test_other_questions_are_not_compared(a, b, message):
    with pytest.raises(NotPaired, match=message):
        compare(a, b)
