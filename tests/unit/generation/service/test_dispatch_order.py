"""Which unit a worker gets, by each policy; the oldest step goes first in all of them."""

from __future__ import annotations

import pytest

from stepstack.generation.service.buffer import WorkUnit
from stepstack.generation.service.config import StreamConfig
from stepstack.generation.service.dispatch import Dispatch

UNITS = [
    WorkUnit(step, number, 0, problems) for step in (4, 3) for number, problems in enumerate([(1, 2), (3, 4), (5,)])
]


def order(dispatch: Dispatch) -> list[tuple[int, int]]:
    waiting, taken = list(UNITS), []
    while waiting:
        unit = dispatch.choose(waiting, "w")
        waiting.remove(unit)
        taken.append((unit.step, unit.number))
    assert [step for step, _ in taken] == [3, 3, 3, 4, 4, 4]
    return taken[:3]


def test_first_in_first_out():
    assert order(Dispatch("fifo")) == [(3, 0), (3, 1), (3, 2)]


def test_random_orders_differ_by_seed_and_are_the_same_for_one():
    orders = [tuple(order(Dispatch("random", seed))) for seed in range(20)]
    assert len(set(orders)) > 3
    assert order(Dispatch("random", 5)) == list(orders[5])


def test_history_takes_the_unit_with_the_longest_prompt_so_far_and_unknown_ones_for_the_mean():
    dispatch = Dispatch("history")
    assert order(dispatch) == [(3, 0), (3, 1), (3, 2)]
    dispatch.ended(1, [10, 20])
    dispatch.ended(3, [90])
    dispatch.ended(5, [50, 70])
    assert order(dispatch) == [(3, 1), (3, 2), (3, 0)]
    again = Dispatch("history")
    again.restore(dispatch.state())
    assert order(again) == order(dispatch)
    assert again.history.total == dispatch.history.total == (240, 5)


def test_a_ranker_says_which_is_longest():
    dispatch = Dispatch("ranker", estimates={1: 1.0, 2: 8.0, 3: 2.0, 4: 3.0, 5: 9.0})
    assert order(dispatch) == [(3, 2), (3, 0), (3, 1)]


@pytest.mark.parametrize("keys", [{"dispatch": "ranker"}, {"ranker": "folder"}])
def test_a_ranker_and_its_folder_go_together(keys):
    with pytest.raises(ValueError, match="go together"):
        StreamConfig(**keys)
