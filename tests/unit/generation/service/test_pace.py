"""Paced work takes the time that was declared, and what was too slow for its pace is counted."""

from __future__ import annotations

import time

import pytest

from stepstack.generation.service.pace import Pace, Paced, late_share
from stepstack.generation.types import Sampling
from stepstack.models.lm import tiny
from stepstack.planning.rollout.curves import DecodeCurve
from tests import tools

CURVE = DecodeCurve(batch=(1, 4), milliseconds=(20.0, 32.0))
LENGTHS = {0: (3, 9), 1: (5, 5), 2: (30, 1)}  # problem -> tokens of its samples
PROMPTS = tools.prompts([3, 4, 5], vocab=90)
TOKENIZER = tiny.tokenizer()


def paced(scale: float = 1.0) -> Paced:
    engine = tools.generator(tools.qwen2(len(TOKENIZER)), TOKENIZER)
    return Paced(engine, CURVE, lambda seed, problem, sample: LENGTHS[problem][sample], Pace(scale))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_groups_come_when_the_curve_says(scale):
    generator = paced(scale)
    # Rows that decode at each of the 30 steps: 6, then without those of 1, 3, 5 (two rows) and 9 tokens.
    rows = [6] + [5] * 2 + [4] * 2 + [2] * 4 + [1] * 21
    due = {1: sum(map(CURVE.seconds, rows[:5])), 0: sum(map(CURVE.seconds, rows[:9])), 2: sum(map(CURVE.seconds, rows))}
    began, came = time.monotonic(), {}
    for group in generator.generate(PROMPTS, Sampling(n=2, max_tokens=64)):
        came[group.prompt.problem.index] = time.monotonic() - began
        assert [len(rollout.ids) for rollout in group.rollouts] == list(LENGTHS[group.prompt.problem.index])
    assert list(came) == [1, 0, 2]
    for problem, seconds in due.items():
        assert came[problem] == pytest.approx(seconds * scale, rel=0.1), problem
    assert generator.pace.deadlines == 30
    assert late_share([generator.pace]) <= 0.1


def test_no_row_is_longer_than_the_budget_and_each_has_the_version_of_the_weights():
    generator = paced(0.01)
    generator.load(tools.qwen2(len(TOKENIZER)).named_parameters(), version=7)
    groups = {group.prompt.problem.index: group for group in generator.generate(PROMPTS, Sampling(n=2, max_tokens=8))}
    assert [(len(r.ids), r.finish, r.version) for r in groups[0].rollouts] == [(3, "stop", 7), (8, "length", 7)]
    assert list(generator.generate([], Sampling())) == []


def test_work_that_outlasts_its_pace_is_counted_and_made_up_for():
    pace = Pace()
    began = time.monotonic()
    pace.start()
    for step in range(10):
        if step in (2, 6):
            time.sleep(0.1)  # real work between deadlines 40 ms apart: that one and the next have passed
        pace.wait(0.04)
    assert pace.deadlines == 10
    assert 4 <= pace.late < 8  # a busy machine may oversleep one
    assert time.monotonic() - began == pytest.approx(0.4, rel=0.1)
    assert late_share([pace, Pace()]) == pace.late / 10
