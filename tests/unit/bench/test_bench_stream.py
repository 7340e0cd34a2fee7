"""The bench of StreamRL's schedules: paced time is that of the simulator, which leases units as workers do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.bench import stream
from evals.tables import bench_stream
from stepstack.planning.rollout.dispatch import Fifo
from stepstack.planning.rollout.lengths import LogNormalLengths

LENGTHS = [[70, 12, 30, 25], [14, 66, 20, 31]]


def faster_of_two(plan, lengths, folder):
    """The contest of less time: other work on this machine makes it longer, never shorter."""
    return min((stream.contest(plan, lengths, folder / f"{at}") for at in range(2)), key=lambda found: found["paced"])


@pytest.mark.parametrize("name", ["colocated", "stream, groups", "one-step", "async"])
def test_a_paced_schedule_takes_the_simulated_time(tmp_path, name):
    plan = stream.plans(rows=4, generation=2, training=1)[name]
    plan = replace(plan, token_seconds=plan.token_seconds * 10)
    found = faster_of_two(plan, LENGTHS, tmp_path)
    assert found["paced"] == pytest.approx(found["simulated"], rel=0.1)
    assert found["deadlines"] > 140  # as many steps as the longest rows have tokens
    assert found["late"] <= 0.1 * found["deadlines"]


def test_a_slow_link_is_hidden_behind_training_that_takes_longer_than_generation(tmp_path):
    plan = stream.plans(rows=4, generation=2, training=1)["async"]
    plan = replace(plan, token_seconds=8e-3, link=0.15)  # training takes 1.1 s, generation and transfer 0.8 s
    found = faster_of_two(plan, LENGTHS * 2, tmp_path)
    assert found["simulated"] == pytest.approx(stream.simulated(replace(plan, link=0.0), LENGTHS * 2, Fifo()))
    assert found["paced"] == pytest.approx(found["simulated"], rel=0.05)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 5))
def test_a_simulated_instance_takes_the_next_unit_when_its_own_has_ended(lengths, workers, size):
    free = [0.0] * workers
    for start in range(0, len(lengths), size):
        unit, seconds = lengths[start : start + size], 0.0
        for step in range(max(unit)):
            seconds += stream.CURVE.seconds(sum(length > step for length in unit))
        free[free.index(min(free))] += seconds
    plan = stream.Plan("batch", workers, size, 0.0)
    assert stream.simulated(plan, [lengths], Fifo()) == pytest.approx(max(free))


def test_every_contest_has_a_row_and_a_busy_machine_voids_the_tables(monkeypatch, capsys):
    monkeypatch.setattr(stream, "LENGTHS", LogNormalLengths(median=4, sigma=0.5, longest=8))
    monkeypatch.setattr(stream, "DISPATCHED", 24)
    monkeypatch.setattr(stream, "LINK_SECONDS", 0.05)
    result = stream.measure(rounds=1, iterations=3, rows=6)
    assert [row["name"] for row in result["schedules"]] == list(stream.plans(6, 2, 1))
    assert [row["name"] for row in result["link"]] == ["one-step", "async"]
    assert len(result["dispatch"]) == 5
    assert all(row["paced"] > 0.9 * row["simulated"] > 0 for row in result["schedules"])
    stream.show(result | {"late": 0.01})
    assert "VOID" not in capsys.readouterr().out
    for table in bench_stream.tables_of(result | {"late": 0.06}):
        assert "VOID" in table.notes[0]
