"""Algorithms 1 and 2 of StreamRL against brute force, curves, lengths, continuous batching, and growth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.planning.rollout import allocation, skew
from stepstack.planning.rollout.curves import DecodeCurve, StageCurve
from stepstack.planning.rollout.generation import end_times, even_seconds, instance_seconds
from stepstack.planning.rollout.lengths import HistogramLengths, ListedLengths, LogNormalLengths, evenly

PUBLISHED = DecodeCurve(
    batch=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    milliseconds=(8.3, 8.7, 8.9, 9.0, 9.4, 10.2, 11.7, 15.2, 21.5, 37),
)

curves = st.lists(st.floats(0.1, 5), min_size=2, max_size=5).map(
    lambda steps: DecodeCurve(
        batch=tuple(2**i for i in range(len(steps))), milliseconds=tuple(itertools.accumulate(steps))
    )
)
# Profiles that fall with devices, in whole seconds so that ties happen.
profiles = st.lists(st.integers(0, 4), min_size=40, max_size=40).map(
    lambda falls: [1 + sum(falls[at:]) for at in range(len(falls))]
)


# -- curves ------------------------------------------------------------------------------------------------------------


def test_decode_steps_are_linear_between_points_and_go_on_with_the_last_slope():
    assert PUBLISHED.seconds(1) == pytest.approx(0.0083)
    assert PUBLISHED.seconds(96) == pytest.approx((11.7 + 15.2) / 2000)
    assert PUBLISHED.seconds(1024) == pytest.approx((37 + 2 * 15.5) / 1000)
    assert DecodeCurve(batch=(4,), milliseconds=(9.0,)).seconds(100) == pytest.approx(0.009)


@settings(deadline=None)
@given(curves, st.integers(1, 100))
def test_a_larger_batch_is_never_faster(curve, rows):
    assert curve.seconds(rows + 1) >= curve.seconds(rows) > 0


def test_a_stage_is_a_power_law_between_points_and_ideal_beyond():
    curve = StageCurve(devices=(8, 32), seconds=(4.0, 1.0))
    assert [curve.at(devices) for devices in (4, 8, 16, 32, 64)] == pytest.approx([8, 4, 2, 1, 0.5])
    assert StageCurve(devices=(8, 32), seconds=(4.0, 4.0)).at(16) == pytest.approx(4)


@pytest.mark.parametrize(
    ("curve", "values", "message"),
    [
        (DecodeCurve, {"batch": (1, 2), "milliseconds": (9.0, 8.0)}, "a larger batch cannot be faster"),
        (DecodeCurve, {"batch": (1, 2), "milliseconds": (9.0,)}, "batch has 2 points and milliseconds 1"),
        (DecodeCurve, {"batch": (2, 2), "milliseconds": (9.0, 9.0)}, "batch must ascend"),
        (StageCurve, {"devices": (8, 4), "seconds": (1.0, 2.0)}, "devices must ascend"),
    ],
)
def test_measurements_that_cannot_be_are_refused(curve, values, message):
    with pytest.raises(ValueError, match=message):
        curve(**values)


# -- lengths -----------------------------------------------------------------------------------------------------------


def test_log_normal_lengths_have_their_median_and_are_cut_off():
    law = LogNormalLengths(median=3400, sigma=0.85, longest=20_000)
    assert law.quantiles([0.5]).tolist() == [3400]
    assert law.quantiles([1 - 1e-9, 0.5 - 0.3413447]).tolist() == [20_000, 1453]
    assert 0.10 < np.mean(law.quantiles((np.arange(1000) + 0.5) / 1000) > 9000) < 0.15


def test_a_histogram_gives_its_counts_back():
    law = HistogramLengths(upto=(10, 100, 1000), counts=(1, 2, 1))
    drawn = evenly(law, 4000)
    assert [int(((low < drawn) & (drawn <= high)).sum()) for low, high in ((0, 10), (10, 100), (100, 1000))] == [
        1000,
        2000,
        1000,
    ]
    assert drawn.min() >= 1
    with pytest.raises(ValueError, match="no bin holds a response"):
        HistogramLengths(upto=(10,), counts=(0,))
    with pytest.raises(ValueError, match="upto has 1 bins and counts 2"):
        HistogramLengths(upto=(10,), counts=(1, 1))
    with pytest.raises(ValueError, match="upto must ascend"):
        HistogramLengths(upto=(10, 5), counts=(1, 1))


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_listed_lengths_stand_for_themselves(tokens):
    assert evenly(ListedLengths(tokens=tuple(tokens)), len(tokens)).tolist() == sorted(tokens, reverse=True)


# -- continuous batching -----------------------------------------------------------------------------------------------


def token_by_token(lengths, cap, curve):
    """Ends of rows when every decode step is simulated."""
    waiting, active, ends, now = list(enumerate(lengths)), {}, [0.0] * len(lengths), 0.0
    while waiting or active:
        while waiting and len(active) < cap:
            row, length = waiting.pop(0)
            active[row] = length
        now += curve.seconds(len(active))
        for row in list(active):
            active[row] -= 1
            if not active[row]:
                ends[row] = now
                del active[row]
    return ends


rows = st.lists(st.integers(1, 12), max_size=12)


@settings(deadline=None)
@given(rows, st.integers(1, 5), curves)
def test_jumping_to_the_next_end_is_the_same_as_decoding_every_token(lengths, cap, curve):
    assert end_times(lengths, cap, curve) == pytest.approx(token_by_token(lengths, cap, curve))


@settings(deadline=None)
@given(rows, st.integers(1, 4), st.integers(1, 5), curves)
def test_no_instance_ends_after_the_first_one_of_an_even_deal(lengths, instances, cap, curve):
    ordered = np.array(sorted(lengths, reverse=True), dtype=np.int64)
    ends = [max(end_times(ordered[at::instances].tolist(), cap, curve), default=0.0) for at in range(instances)]
    assert even_seconds(np.array(lengths, dtype=np.int64), instances, cap, curve) == pytest.approx(max(ends))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 30), curves)
def test_equation_2_is_exact_for_equal_lengths_in_whole_batches(batches, batch, length, curve):
    lengths = [length] * (batches * batch)
    assert instance_seconds(len(lengths), length, batch, curve) == pytest.approx(end_times(lengths, batch, curve)[-1])


# -- algorithm 1 -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(profiles, profiles, st.integers(2, 20), st.integers(1, 3))
def test_devices_of_one_datacentre_are_those_of_brute_force(gen, train, devices, unit):
    def generation(x):
        return gen[x]

    def training(y):
        return train[y]

    if devices < 2 * unit:
        with pytest.raises(ValueError, match="cannot be shared by generation and training"):
            allocation.single(devices, generation, training, unit)
        return
    found = allocation.single(devices, generation, training, unit)
    best = min(
        max(gen[x], train[y])
        for x in range(unit, devices + 1, unit)
        for y in range(unit, devices + 1, unit)
        if x + y <= devices
    )
    assert found.seconds == best == max(gen[found.generation], train[found.training])
    assert found.generation + found.training <= devices
    assert found.generation % unit == found.training % unit == 0
    for x, y in ((found.generation - unit, found.training), (found.generation, found.training - unit)):
        if x and y:
            assert max(gen[x], train[y]) > best, "a unit does nothing"


@settings(deadline=None)
@given(profiles, profiles, st.integers(1, 20), st.integers(1, 20))
def test_devices_of_two_datacentres_are_those_of_brute_force(gen, train, m, n):
    found = allocation.cross(m, n, gen.__getitem__, train.__getitem__)
    slow = max(gen[m], train[n])
    assert found.seconds >= slow
    if gen[m] < train[n]:
        assert found.training == n
        gaps = {k: abs(gen[k] - train[n]) for k in range(1, m + 1)}
        side = found.generation
    else:
        assert found.generation == m
        gaps = {k: abs(train[k] - gen[m]) for k in range(1, n + 1)}
        side = found.training
    assert side == min(k for k, gap in gaps.items() if gap == min(gaps.values()))


def test_two_datacentres_need_a_unit_each():
    with pytest.raises(ValueError, match="training has 7 devices, less than a unit of 8"):
        allocation.cross(8, 7, float, float, 8)


# -- algorithm 2 -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(2, 400), st.integers(2, 12), st.integers(1, 64), st.sampled_from(["max", "paper"]), curves)
def test_a_split_is_that_of_brute_force(prompts, instances, cap, objective, curve):
    found = skew.split(prompts, instances, 9000, 3000, cap, curve, 0.2, objective)
    many = math.ceil(prompts / 5)
    assert found.long_prompts == many

    def latency(count, length, n):
        on_one = math.ceil(count / n)
        batch = min(cap, on_one)
        return curve.seconds(batch) * length * math.ceil(on_one / batch) if on_one else 0.0

    combine = {"max": max, "paper": lambda a, b: a + b}[objective]
    values = [
        combine(latency(many, 9000, n), latency(prompts - many, 3000, instances - n)) for n in range(1, instances)
    ]
    assert skew.seconds(found, objective) == pytest.approx(min(values))
    assert found.long_instances + found.regular_instances == instances


def test_the_sum_splits_in_half_where_the_slower_part_would_not():
    """The paper's objective without a cap on 16 instances."""
    by_sum = skew.split(1024, 16, 9000, 3000, 10_000, PUBLISHED, objective="paper")
    by_max = skew.split(1024, 16, 9000, 3000, 10_000, PUBLISHED, objective="max")
    assert by_sum.long_instances != by_max.long_instances
    assert skew.seconds(by_max, "max") < skew.seconds(by_sum, "max")


def test_one_instance_cannot_be_split():
    with pytest.raises(ValueError, match="give two instances or more"):
        skew.split(10, 1, 9000, 3000, 64, PUBLISHED)


# -- growth ------------------------------------------------------------------------------------------------------------


def test_a_unit_is_added_when_delta_reaches_its_gain():
    assert allocation.needs_unit(10, 8, 2)
    assert not allocation.needs_unit(10, 8, 2.01)
    assert not allocation.needs_unit(10, 8, 0)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 30), st.integers(0, 60))
def test_growth_adds_units_one_at_a_time_and_only_where_they_help(start, unit, iterations, room):
    most = start + room

    def generation(iteration, devices):
        return (10 + iteration) / devices

    decisions = allocation.grow(start, unit, iterations, generation, lambda iteration: 1.0, most)
    before = start
    for one in decisions:
        gain = generation(one.iteration, before) - generation(one.iteration, before + unit)
        delta = generation(one.iteration, before) - 1.0
        assert (one.gain, one.delta) == pytest.approx((gain, delta))
        assert one.devices == before + (unit if before + unit <= most and delta >= gain else 0)
        before = one.devices
    assert before <= most
