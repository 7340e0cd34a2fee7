"""Dispatch policies: all is handed out once, the same calls give the same answers, and each keeps its promise."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from stepstack.planning.rollout import dispatch
from stepstack.planning.rollout.curves import DecodeCurve
from stepstack.planning.rollout.dispatch import DispatchConfig, History, LengthSplit, RandomHomes, Stealing, Unit

CURVE = DecodeCurve(batch=(1, 64), milliseconds=(8.0, 12.0))
NAMES = ("fifo", "random", "length", "oracle", "history", "longest", "sibling", "steal")


def units(count, samples=1, iteration=0):
    return [Unit(iteration, row, row // samples, row % samples) for row in range(count)]


def made(name, lengths):
    config = TypeAdapter(DispatchConfig).validate_python({"type": name})
    return dispatch.build(config, lambda unit: lengths[unit.number] % 7, lambda unit: lengths[unit.number], 4, CURVE)


def drain(policy, todo, workers, lengths, ask):
    """Hand everything out: ``ask`` gives the workers that ask, in turn. The order as (worker, unit)."""
    policy.begin(todo, workers)
    waiting, order = {unit.number: unit for unit in todo}, []
    refusals = 0
    while waiting:
        worker = next(ask)
        unit = policy.next_unit(waiting, worker, workers)
        if unit is None:
            refusals += 1
            assert refusals < 1000, "nobody gets what waits"
            continue
        refusals = 0
        assert waiting.pop(unit.number) == unit
        order.append((worker, unit))
        policy.ended(unit, lengths[unit.number])
    return order


cases = st.tuples(
    st.sampled_from(NAMES),
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(1, 5),
    st.sampled_from([1, 2, 4]),
)


@settings(deadline=None)
@given(cases)
def test_every_unit_is_handed_out_once_and_always_alike(case):
    name, lengths, workers, samples = case
    todo = units(len(lengths), samples)
    first, again = (
        drain(made(name, lengths), todo, list(range(workers)), lengths, itertools.cycle(range(workers)))
        for _ in range(2)
    )
    assert first == again
    assert sorted(unit for _, unit in first) == todo


@settings(deadline=None)
@given(cases, st.data())
def test_work_of_a_worker_that_died_goes_to_the_others(case, data):
    name, lengths, workers, samples = case
    workers += 1
    policy, todo = made(name, lengths), units(len(lengths), samples)
    policy.begin(todo, list(range(workers)))
    dead = data.draw(st.integers(0, workers - 1))
    waiting = {unit.number: unit for unit in todo}
    lost = policy.next_unit(waiting, dead, list(range(workers)))  # it ran on the worker that died
    assert lost is None or lost in todo
    living = [worker for worker in range(workers) if worker != dead]
    for worker in itertools.cycle(living):
        if not waiting:
            break
        unit = policy.next_unit(waiting, worker, living)
        if unit is not None:
            del waiting[unit.number]
            policy.ended(unit, lengths[unit.number])
        elif all(policy.next_unit(waiting, other, living) is None for other in living):
            pytest.fail("nobody gets what waits")


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 5))
def test_random_homes_have_equal_numbers(count, workers, seed):
    policy = RandomHomes(seed)
    policy.begin(units(count), list(range(workers)))
    numbers = [list(policy.homes.values()).count(worker) for worker in range(workers)]
    assert max(numbers) - min(numbers) <= 1


def test_random_homes_differ_by_seed_and_iteration():
    homes = set()
    for seed, iteration in ((0, 0), (1, 0), (0, 1)):
        policy = RandomHomes(seed)
        policy.begin(units(60, iteration=iteration), [0, 1, 2])
        homes.add(tuple(home for _, home in sorted(policy.homes.items())))
    assert len(homes) == 3


def test_the_longest_fifth_has_instances_of_its_own_and_goes_longest_first():
    lengths = list(range(1, 101))
    policy = LengthSplit(lambda unit: lengths[unit.number], 4, CURVE)
    todo = units(100)
    policy.begin(todo, [0, 1, 2, 3])
    homes = {unit.number: home for unit, home in policy.homes.items()}
    longs = {homes[row] for row in range(80, 100)}
    assert longs.isdisjoint({homes[row] for row in range(80)})
    for worker in range(4):
        mine = [
            u.number for w, u in drain(policy, todo, [0, 1, 2, 3], lengths, itertools.cycle(range(4))) if w == worker
        ]
        assert mine == sorted(mine, reverse=True)


def test_recent_lengths_decide_the_split_once_there_are_some():
    """The same estimates, but a history in which long responses are no longer than the others."""
    alike, skewed = (LengthSplit(lambda unit: unit.number, 64, CURVE) for _ in range(2))
    for policy, tokens in ((alike, [100] * 100), (skewed, [100] * 80 + [2000] * 20)):
        policy.begin(units(100), range(8))
        for unit, length in zip(units(100), tokens, strict=True):
            policy.ended(unit, length)
        policy.begin(units(1000, iteration=1), range(8))
    long_homes = [len({home for u, home in policy.homes.items() if u.number >= 800}) for policy in (alike, skewed)]
    assert long_homes[0] < long_homes[1]


def test_history_is_the_mean_of_a_prompts_responses_and_of_all_for_a_new_prompt():
    history = History()
    assert history(Unit(0, 0, 7)) == 0
    for prompt, tokens in ((7, 10), (7, 30), (8, 50)):
        history.add(Unit(0, 0, prompt), tokens)
    assert [history(Unit(1, 0, prompt)) for prompt in (7, 8, 9)] == [20, 50, 30]


def test_siblings_of_what_still_runs_go_before_those_of_what_ended_and_the_longest_of_these_first():
    policy = dispatch.SiblingFirst()
    todo = units(12, samples=3)
    policy.begin(todo, [0])
    waiting = {unit.number: unit for unit in todo}
    order = []
    lengths = {0: 5, 1: 9, 2: 1, 3: 7}  # by prompt
    for _ in range(12):
        unit = policy.next_unit(waiting, 0, [0])
        order.append(waiting.pop(unit.number))
        if unit.prompt != 3:  # nothing of the last prompt has ended
            policy.ended(unit, lengths[unit.prompt])
    assert [(u.prompt, u.sample) for u in order[:4]] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert [u.prompt for u in order[4:]] == [3, 3, 1, 1, 0, 0, 2, 2]


def test_groups_that_ended_long_ago_are_forgotten():
    policy = dispatch.SiblingFirst()
    for iteration in range(5):
        todo = units(4, 2, iteration)
        policy.begin(todo, [0])
        for unit in todo:
            policy.ended(unit, 3)
    assert {iteration for iteration, _ in policy.first} == {iteration for iteration, _ in policy.known} == {3, 4}


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=3, max_size=40), st.integers(2, 5))
def test_an_idle_worker_takes_the_last_of_the_fullest_queue(lengths, workers):
    policy = Stealing(RandomHomes(0))
    todo = units(len(lengths))
    policy.begin(todo, list(range(workers)))
    waiting = {unit.number: unit for unit in todo if policy.policy.homes[unit] != 0}
    queues = {w: [u for u in waiting.values() if policy.policy.homes[u] == w] for w in range(1, workers)}
    if not waiting:
        return
    taken = policy.next_unit(waiting, 0, list(range(workers)))
    owner = policy.policy.homes[taken]
    assert len(queues[owner]) == max(map(len, queues.values()))
    assert policy.policy.place[taken] == max(policy.policy.place[u] for u in queues[owner])


def test_the_fullest_queue_is_the_one_with_the_most_waiting_units():
    policy = Stealing(RandomHomes(0))
    policy.begin(units(30), [0, 1, 2])
    homes = policy.policy.homes
    first = [unit for unit in homes if homes[unit] == 1][:2]
    waiting = {unit.number: unit for unit in units(30) if homes[unit] == 2 or unit in first}
    assert homes[policy.next_unit(waiting, 0, [0, 1, 2])] == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_waits_again_when_its_worker_was_started_anew(name):
    """The worker has its old number, and had already been handed everything."""
    policy = made(name, [5] * 4)
    policy.begin(units(4), [0])
    waiting = {unit.number: unit for unit in units(4)}
    while (unit := policy.next_unit(waiting, 0, [0])) is not None:
        del waiting[unit.number]
    waiting[2] = units(4)[2]
    assert policy.next_unit(waiting, 0, [0]) == units(4)[2]


@pytest.mark.parametrize("name", ["random", "length", "oracle", "history", "steal"])
def test_what_ended_is_forgotten(name):
    lengths = [3] * 20
    policy = made(name, lengths)
    drain(policy, units(20), [0, 1, 2], lengths, itertools.cycle(range(3)))
    homes = policy.policy if isinstance(policy, Stealing) else policy
    assert homes.homes == homes.place == homes.queues == {}
    assert not homes.taken
    assert not homes.left
