"""Evaluation by brute force."""

import math
import statistics

import pytest

from stepstack.core.types import SingleProcess
from stepstack.generation.types import Group, Sampling
from stepstack.harness.training.validation import validate
from stepstack.records import Score
from tests import tools

# Scores of 3 samples of each of 4 questions, their lengths, and which were cut.
SCORES = {4: [1.0, 1.0, 0.0], 9: [0.0, 0.0, 0.0], 2: [1.0, 1.0, 1.0], 7: [0.0, 1.0, 0.0]}


class Known:
    """Groups whose rollouts are made up; the last one's samples come in another order."""

    def generate(self, prompts, sampling):
        for p in reversed(prompts):
            index = p.problem.index
            yield Group(
                p,
                tuple(
                    tools.rollout(p, s, (9,) * (index + s), "length" if (index, s) == (9, 1) else "stop")
                    for s in reversed(range(sampling.n))
                ),
            )


class Share:
    """One of two processes; the other's items are handed in."""

    processes = 2

    def __init__(self, rank, others):
        self.rank, self.others, self.given = rank, others, None

    def gather(self, items):
        self.given = items
        return self.others + items if self.rank else items + self.others


def reward(rollouts):
    return [Score(SCORES[r.problem.index][r.sample]) for r in rollouts]


PROMPTS = [tools.prompt(index, (5,)) for index in SCORES]


def test_accuracy_is_the_mean_over_questions_of_avg_at_k():
    found = validate(Known(), PROMPTS, Sampling(n=3), reward, SingleProcess())
    means = [statistics.fmean(scores) for scores in SCORES.values()]
    assert found.accuracy == pytest.approx(statistics.fmean(means)) == pytest.approx(0.5)
    assert (found.n, found.k) == (4, 3)
    assert found.length == pytest.approx(statistics.fmean(i + s for i in SCORES for s in range(3)))
    assert found.truncated == pytest.approx(1 / 12)


def test_the_standard_error_is_clustered_by_question():
    """Samples of one question are not independent: n is the number of questions."""
    found = validate(Known(), PROMPTS, Sampling(n=3), reward, SingleProcess())
    means = [statistics.fmean(scores) for scores in SCORES.values()]
    assert found.stderr == pytest.approx(statistics.stdev(means) / math.sqrt(4))
    naive = statistics.stdev([x for scores in SCORES.values() for x in scores]) / math.sqrt(12)
    assert found.stderr > 1.2 * naive


def test_one_sample_a_question_gives_the_binomial_error():
    found = validate(Known(), PROMPTS, Sampling(n=1), reward, SingleProcess())
    assert found.accuracy == 0.5
    assert found.stderr == pytest.approx(math.sqrt(0.5 * 0.5 / 3))


def test_every_sample_is_kept_in_order():
    found = validate(Known(), PROMPTS, Sampling(n=3), reward, SingleProcess())
    assert [(r.prompt.problem.index, r.sample) for r, _ in found.scored] == [
        (i, s) for i in (2, 4, 7, 9) for s in range(3)
    ]
    assert [score.value for _, score in found.scored] == [x for i in (2, 4, 7, 9) for x in SCORES[i]]


def test_two_processes_get_the_whole_result():
    whole = validate(Known(), PROMPTS, Sampling(n=3), reward, SingleProcess())
    first = Share(0, [])
    validate(Known(), PROMPTS, Sampling(n=3), reward, first)
    assert {r.prompt.problem.index for r, _ in first.given} == {4, 2}
    assert validate(Known(), PROMPTS, Sampling(n=3), reward, Share(1, first.given)) == whole


def test_metrics_carry_their_prefix():
    found = validate(Known(), PROMPTS, Sampling(n=3), reward, SingleProcess()).metrics("eval")
    assert set(found) == {"eval/accuracy", "eval/stderr", "eval/length", "eval/truncated"}


def test_a_single_question_has_no_spread():
    assert validate(Known(), PROMPTS[:1], Sampling(n=3), reward, SingleProcess()).stderr is None


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        validate(Known(), [], Sampling(), reward, SingleProcess())
