"""The planner's policies on the units of a run: who gets what, when workers come and go, and what is learned."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from stepstack.generation.service.buffer import WorkBuffer, WorkUnit
from stepstack.generation.service.config import StreamConfig
from stepstack.generation.service.dispatch import UnitDispatch
from stepstack.planning.rollout import skew
from stepstack.planning.rollout.curves import DecodeCurve
from tests import tools

READ = TypeAdapter(StreamConfig)
LENGTHS = [5, 80, 7, 9, 60, 4, 3, 8, 6, 70]  # of the response to each problem; two problems a unit
PROMPTS = tools.prompts([4] * len(LENGTHS))
UNITS = [WorkUnit(0, number, 0, (2 * number, 2 * number + 1)) for number in range(5)]
BY_LENGTH = [0, 4, 2, 1, 3]  # 80, 70, 60, 9, 8
CHOICES = [
    {"type": "fifo"},
    {"type": "random", "seed": 1},
    {"type": "steal", "seed": 1},
    {"type": "longest"},
    {"type": "history"},
    {"type": "longest", "ranker": "r"},
    {"type": "length", "ranker": "r"},
]


def dispatcher(choice: dict) -> UnitDispatch:
    rank = (lambda prompts: [LENGTHS[prompt.problem.index] for prompt in prompts]) if "ranker" in choice else None
    made = UnitDispatch(READ.validate_python({"dispatch": choice}).dispatch, rank)
    made.admit(PROMPTS)
    return made


def learn(dispatch: UnitDispatch, units: Sequence[WorkUnit] = UNITS) -> None:
    for unit in units:
        for problem in unit.problems:
            dispatch.group_ended(problem, [LENGTHS[problem]])
        dispatch.unit_ended(max(LENGTHS[problem] for problem in unit.problems))


def order(dispatch: UnitDispatch, workers: Sequence[str] = ("a",)) -> list[int]:
    """Numbers of the units in the order in which the workers, who ask in turn, get them."""
    waiting, got = list(UNITS), []
    while waiting:
        before = len(got)
        for worker in workers:
            unit = dispatch.choose(waiting, worker, workers) if waiting else None
            if unit is not None:
                waiting.remove(unit)
                got.append(unit.number)
        assert len(got) > before
    return got


@pytest.mark.parametrize("choice", CHOICES[3:5])
def test_earlier_responses_order_the_units_by_their_longest_prompt(choice):
    assert order(dispatcher(choice)) == [0, 1, 2, 3, 4]
    dispatch = dispatcher(choice)
    learn(dispatch)
    assert order(dispatch) == BY_LENGTH


@pytest.mark.parametrize("choice", CHOICES[5:])
def test_a_ranker_orders_the_units_from_the_first_step(choice):
    assert order(dispatcher(choice)) == BY_LENGTH


def test_a_prompt_without_a_response_counts_as_the_mean_of_all():
    dispatch = dispatcher({"type": "longest"})
    learn(dispatch, [UNITS[0], UNITS[3]])  # 5, 80; 3, 8: mean 24
    assert order(dispatch) == [0, 1, 2, 4, 3]


def test_algorithm_2_gives_the_longest_fifth_a_worker_of_its_own():
    dispatch = dispatcher({"type": "length", "ranker": "r", "share": 0.2})
    found = {worker: dispatch.choose(UNITS, worker, ["a", "b", "c"]) for worker in ("a", "b", "c")}
    assert {worker: unit.number for worker, unit in found.items()} == {"a": 0, "b": 4, "c": 2}
    assert dispatch.choose(UNITS[1:], "a", ["a", "b", "c"]) is None


@given(
    st.integers(1, 200),
    st.integers(2, 16),
    st.floats(1, 1e5),
    st.floats(1, 1e5),
    st.floats(0.1, 1e3),
    st.sampled_from(["max", "paper"]),
)
def test_the_split_of_units_depends_on_no_decode_curve(units, workers, long, regular, milliseconds, objective):
    """A worker has one unit at a time: the time of its decode step is a factor of both parts."""
    values = []
    for time in (1.0, milliseconds):
        found = skew.split(
            units, workers, long, regular, 1, DecodeCurve(batch=(1,), milliseconds=(time,)), 0.2, objective
        )
        one = DecodeCurve(batch=(1,), milliseconds=(1.0,))
        parts = (
            skew.part_seconds(found.long_prompts, long, found.long_instances, 1, one),
            skew.part_seconds(units - found.long_prompts, regular, found.regular_instances, 1, one),
        )
        values.append(sum(parts) if objective == "paper" else max(parts))
    assert values[0] == pytest.approx(values[1])


@given(st.sampled_from(CHOICES), st.lists(st.integers(0, 11), max_size=80), st.booleans())
def test_whoever_joins_leaves_or_hangs_up_all_units_are_done_once(choice, events, learned):
    """Numbers are events: 0 to 3 a worker joins or asks, 4 to 7 it brings what it has, 8 to 11 it leaves."""
    dispatch, living = dispatcher(choice), list[str]()
    if learned:
        learn(dispatch)
    buffer: WorkBuffer[str] = WorkBuffer(2, lambda waiting, worker: dispatch.choose(waiting, worker, living))
    buffer.admit(UNITS)
    buffer.admit([WorkUnit(1, 0, 0, (1, 4)), WorkUnit(1, 1, 0, (9,))])

    def bring(worker: str) -> None:
        lease = buffer.leased_by(worker)
        if lease is not None:
            for problem in lease.wanted:
                assert buffer.end(lease.unit.step, lease.unit.number, lease.attempt, problem, "group", 0.0)

    for event in events:
        kind, worker = event // 4, f"w{event % 4}"
        if kind == 0 and worker not in living:
            living.append(worker)
        elif kind == 0 and buffer.leased_by(worker) is None:
            buffer.lease(worker, 0.0)
        elif kind == 1:
            bring(worker)
        elif kind == 2 and worker in living:
            living.remove(worker)
            buffer.release(worker)
    living = living or ["last"]
    for _ in range(20):
        for worker in living:
            bring(worker)
            buffer.lease(worker, 0.0)
    buffer.trained(0)
    buffer.trained(1)


def test_a_worker_that_joins_late_is_dealt_a_share():
    dispatch = dispatcher({"type": "random"})
    first = dispatch.choose(UNITS, "a", ["a"])
    waiting = [unit for unit in UNITS if unit != first]
    assert dispatch.choose(waiting, "b", ["a", "b"]) is not None


def test_the_oldest_step_goes_first():
    dispatch = dispatcher({"type": "longest", "ranker": "r"})
    late = [WorkUnit(1, 0, 0, (1,)), WorkUnit(0, 3, 0, (6, 7))]
    assert dispatch.choose(late, "a", ["a"]) == late[1]


def test_the_lengths_that_were_seen_outlast_a_checkpoint_as_json():
    dispatch = dispatcher({"type": "fifo"})
    learn(dispatch)
    restored = dispatcher({"type": "history"})
    restored.restore(json.loads(json.dumps(dispatch.state())))
    assert restored.state() == dispatch.state()
    assert order(restored) == BY_LENGTH
    learn(restored)
    learn(dispatch)
    assert restored.state() == dispatch.state()
    assert restored.history.total == dispatch.history.total


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({"type": "oracle"}, "dispatch.type=oracle needs the true lengths, which only a simulation knows"),
        ({"type": "sibling"}, "dispatch.type=sibling orders the samples of a prompt, which a unit of a run holds"),
        ({"type": "length"}, "ranker"),
        ({"type": "shortest"}, "fifo"),
    ],
)
def test_policies_that_a_run_cannot_have_are_refused_by_name(choice, why):
    with pytest.raises(ValidationError, match=why):
        READ.validate_python({"dispatch": choice})
