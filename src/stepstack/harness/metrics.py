"""Figures of a set of questions with k samples each, with standard errors. No torch.

A failed sample (no completion, or no verdict) has ``score`` None: it is left out and counted, never taken for wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from stepstack.generation.types import Budget, Sampling
from stepstack.harness.answers import Sample

RESAMPLES = 1000

Question = Sequence[Sample]  # the samples of one question


@dataclass(frozen=True, slots=True)
class Measured:
    """``value`` over ``n`` questions that have one. ``stderr`` is None where the values cannot tell it: of a single
    question, and where all are alike, such as 0 of 30 right, which is no certainty."""

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Metric:
    """``measure`` gets the questions, in order. ``whole``: a figure of the set that no question has by itself. Made by
    ``mean`` or ``corpus``."""

    name: str
    measure: Callable[[Sequence[Question]], Measured | None]
    higher_is_better: bool = True
    whole: bool = False


def mean(name: str, of: Callable[[Question], float | None], *, higher_is_better: bool = True) -> Metric:
    """The mean over questions of a figure of one question (None: it has none, and is left out).

    The standard error is that of the mean of independent questions, which clusters the samples of each.
    """

    def measure(questions: Sequence[Question]) -> Measured | None:
        values = [value for question in questions if (value := of(question)) is not None]
        return clustered(values) if values else None

    return Metric(name, measure, higher_is_better)


def corpus(
    name: str, of: Callable[[Sequence[Question]], float | None], *, higher_is_better: bool = True, seed: int = 0
) -> Metric:
    """A figure of the whole set, as average precision or BLEU; its standard error is a bootstrap over questions."""

    def measure(questions: Sequence[Question]) -> Measured | None:
        questions = [verdicts for question in questions if (verdicts := scored(question))]
        value = of(questions) if questions else None
        if value is None:
            return None
        draws = np.random.default_rng(seed).integers(0, len(questions), (RESAMPLES, len(questions)))
        again = [of([questions[i] for i in draw]) for draw in draws]
        redrawn = [figure for figure in again if figure is not None]
        return Measured(value, _spread(redrawn), len(questions))

    return Metric(name, measure, higher_is_better, whole=True)


def clustered(values: Sequence[float]) -> Measured:
    """Mean and standard error of one value a question."""
    spread = _spread(values)
    return Measured(fmean(values), None if spread is None else spread / math.sqrt(len(values)), len(values))


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation, None where there is nothing to tell it by."""
    return stdev(values) if len(set(values)) > 1 else None


def of_samples(budget: Budget) -> list[Metric]:
    """Figures of 0/1 scores: greedy accuracy at temperature 0, else avg@k, unbiased pass@2, @4 ... @k and maj@k."""
    if isinstance(budget, Sampling) and budget.temperature == 0:
        return [mean("greedy", average)]
    k = budget.n
    metrics = [mean(f"avg@{k}", average)]
    if k > 1:
        powers = sorted({2**i for i in range(1, k.bit_length()) if 2**i <= k} | {k})
        metrics += [mean(f"pass@{j}", lambda question, j=j: pass_at(question, j)) for j in powers]  # type: ignore[misc]
        metrics.append(mean(f"maj@{k}", majority))
    return metrics


def part(name: str, label: str = "", *, higher_is_better: bool = True) -> Metric:
    """The mean of one part of the scores, under its name or ``shown``."""

    def of(question: Question) -> float | None:
        values = [sample.parts[name] for sample in scored(question)]
        return fmean(values) if values else None

    return mean(label or name, of, higher_is_better=higher_is_better)


def average(question: Question) -> float | None:
    values = [sample.score for sample in question if sample.score is not None]
    return fmean(values) if values else None


def pass_at(question: Question, k: int) -> float | None:
    """Unbiased estimate that at least one of k samples is right, from n >= k (Chen et al. 2021, equation 1).

    A question with fewer than k verdicts has none. Right means a score above 0.
    """
    verdicts = scored(question)
    n, right = len(verdicts), sum(sample.score > 0 for sample in verdicts)  # type: ignore[operator]
    if n < k:
        return None
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority(question: Question) -> float | None:
    """Score of the answer that most samples give; tied answers share, samples without an answer have no vote.

    Answers are the same where their texts are, but for white space. Where no sample has an answer the score is 0.
    """
    verdicts = scored(question)
    if not verdicts:
        return None
    votes: Counter[str] = Counter()
    value: dict[str, list[float]] = {}
    for sample in verdicts:
        if sample.answer is not None:
            key = "".join(sample.answer.split())
            votes[key] += 1
            value.setdefault(key, []).append(sample.score)  # type: ignore[arg-type]
    most = max(votes.values(), default=0)
    return fmean([fmean(value[key]) for key, count in votes.items() if count == most]) if most else 0.0


def scored(question: Question) -> list[Sample]:
    """The samples that have a verdict."""
    return [sample for sample in question if sample.score is not None]
