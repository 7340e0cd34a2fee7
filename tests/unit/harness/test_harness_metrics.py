"""Metrics by brute force: what they say of failed samples, ties and few samples."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepstack.generation.types import Sampling
from stepstack.harness.answers import Sample
from stepstack.harness.metrics import average, corpus, majority, mean, of_samples, part, pass_at


def question(*scores: float | None, answers: tuple[str | None, ...] | None = None, index: int = 0) -> list[Sample]:
    answers = answers or tuple(str(score) for score in scores)
    return [
        Sample(
            index=index,
            sample=number,
            problem="p",
            gold="1",
            prompt="p",
            text="t",
            ids=[1],
            tokens=1,
            finish="error" if score is None else "stop",
            answer=answer,
            score=score,
            failure="engine: gone" if score is None else None,
            parts={} if score is None else {"boxed": score / 2},
        )
        for number, (score, answer) in enumerate(zip(scores, answers, strict=True))
    ]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(right, data):
    k = data.draw(st.integers(1, len(right)))
    subsets = list(itertools.combinations(right, k))
    brute = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at(question(*map(float, right)), k) == pytest.approx(brute)


def test_pass_at_1_is_the_average():
    q = question(1.0, 0.0, 0.0, 1.0, 1.0)
    assert pass_at(q, 1) == pytest.approx(average(q)) == pytest.approx(0.6)


def test_a_question_with_too_few_verdicts_has_no_pass_at_k():
    q = question(1.0, None, None)
    assert pass_at(q, 1) == 1.0
    assert pass_at(q, 2) is None


def test_majority_goes_by_answers_and_shares_ties():
    assert majority(question(0.0, 0.0, 1.0, answers=("3", "3 ", "4"))) == 0.0
    assert majority(question(1.0, 1.0, 0.0, answers=("x + 1", "x+1", "4"))) == 1.0
    assert majority(question(1.0, 0.0, answers=("4", "5"))) == 0.5
    assert majority(question(0.0, 0.0, 1.0, answers=(None, None, "4"))) == 1.0  # no answer has no vote
    assert majority(question(0.0, 0.0, answers=(None, None))) == 0.0
    assert majority(question(None, None)) is None


def test_the_mean_clusters_samples_by_question():
    questions = [question(1.0, 1.0), question(0.0, 1.0), question(0.0, 0.0)]
    figure = mean("avg@2", average).measure(questions)
    assert figure.value == pytest.approx(0.5)
    assert figure.stderr == pytest.approx(statistics.stdev([1.0, 0.5, 0.0]) / math.sqrt(3))
    assert figure.n == 3


def test_a_failed_sample_is_left_out_and_never_zero():
    figure = mean("avg@2", average).measure([question(1.0, None), question(None, None), question(0.0, 1.0)])
    assert figure.value == pytest.approx(0.75)
    assert figure.n == 2


def test_nothing_scored_has_no_value():
    assert mean("avg@1", average).measure([question(None)]) is None
    assert corpus("all", lambda questions: 1.0).measure([question(None)]) is None


def test_a_single_question_has_no_spread():
    assert mean("avg@1", average).measure([question(1.0)]).stderr is None


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_what_scores_alike_tells_no_error(score, count):
    """0 of 30 right is an estimate like any other: ± 0.000 would read as certainty."""
    questions = [question(score) for _ in range(count)]
    assert mean("avg@1", average).measure(questions).stderr is None
    assert corpus("mean", lambda qs: statistics.fmean(q[0].score for q in qs)).measure(questions).stderr is None
    assert mean("avg@1", average).measure([*questions, question(0.5)]).stderr > 0


def test_the_bootstrap_agrees_with_the_closed_form_of_a_mean():
    rng = np.random.default_rng(0)
    questions = [question(float(x)) for x in rng.integers(0, 2, 200)]
    exact = mean("m", average).measure(questions)
    boot = corpus("m", lambda qs: statistics.fmean(average(q) for q in qs)).measure(questions)
    assert boot.value == pytest.approx(exact.value)
    assert boot.stderr == pytest.approx(exact.stderr, rel=0.1)
    assert boot == corpus("m", lambda qs: statistics.fmean(average(q) for q in qs)).measure(questions)


def test_parts_are_metrics_too():
    figure = part("boxed", higher_is_better=False).measure([question(1.0, 0.0), question(1.0, None)])
    assert figure.value == pytest.approx((0.25 + 0.5) / 2)
    assert not part("boxed", higher_is_better=False).higher_is_better


@pytest.mark.parametrize(
    ("sampling", "names"),
    [
        (Sampling(n=1), ["avg@1"]),
        (Sampling(n=16), ["avg@16", "pass@2", "pass@4", "pass@8", "pass@16", "maj@16"]),
        (Sampling(n=6), ["avg@6", "pass@2", "pass@4", "pass@6", "maj@6"]),
        (Sampling(n=1, temperature=0), ["greedy"]),
    ],
)
def test_the_figures_follow_from_how_it_was_sampled(sampling, names):
    assert [metric.name for metric in of_samples(sampling)] == names


def test_the_figures_of_a_set():
    questions = [question(1.0, 0.0, 0.0, 0.0, answers=("1", "2", "2", "3")), question(1.0, 1.0, 1.0, 0.0)]
    values = {m.name: m.measure(questions).value for m in of_samples(Sampling(n=4))}
    assert values == pytest.approx({"avg@4": 0.5, "pass@2": (0.5 + 1) / 2, "pass@4": 1.0, "maj@4": 0.5})
