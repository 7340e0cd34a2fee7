"""Matching against trying every assignment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stepstack.scoring.vision.matching import in_order, match

scores = arrays(float, st.tuples(st.integers(0, 4), st.integers(0, 4)), elements=st.floats(-2, 2))


def best(table: np.ndarray) -> float:
    """The largest sum of positive scores over all assignments."""
    rows, columns = table.shape
    wide = np.maximum(table if rows <= columns else table.T, 0)
    few, many = wide.shape
    return max(sum(wide[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(many), few))


@given(scores)
def test_match_is_the_best_of_all_assignments(table):
    pairs = match(table)
    assert sum(table[pair] for pair in pairs) == pytest.approx(best(table))
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(table[pair] > 0 for pair in pairs)


def test_the_best_sum_beats_the_best_single_pair():
    assert match(np.array([[0.9, 0.8], [0.8, 0.0]])) == [(0, 1), (1, 0)]


def test_a_pair_without_worth_is_no_match():
    assert match(np.array([[0.0, 0.0], [0.0, 0.5]])) == [(1, 1)]
    assert match(np.array([[1.0, 0.4], [0.4, -9.0]])) == [(0, 0)]  # -9 counts as nothing, not against 1 + nothing
    assert match(np.zeros((3, 0))) == match(np.zeros((0, 3))) == []


def test_scores_must_be_numbers():
    with pytest.raises(ValueError, match="finite"):
        match(np.array([[np.nan]]))


@given(scores)
def test_in_order_pairs_the_same_places(table):
    assert in_order(table) == [(i, i) for i in range(min(table.shape)) if table[i, i] > 0]
    assert sum(table[pair] for pair in in_order(table)) <= best(table) + 1e-9
