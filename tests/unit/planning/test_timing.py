"""Interpolation of measured times."""

from __future__ import annotations

import pytest

from stepstack.planning.timing import Attention, Link

NEAR = Link((0.0, 1000.0, 5000.0), (1.0, 3.0, 9.0))
FAR = Link((0.0, 1000.0), (4.0, 16.0))
TABLE = Attention((8, 64), (0.0, 0.5, 0.9), ((4.0, 2.5, 1.0), (200.0, 110.0, 30.0)))


def test_a_link_interpolates_and_goes_on_with_its_last_slope():
    assert NEAR.time([0, 1, 1000, 3000, 5000, 9000]).tolist() == pytest.approx([0, 1.002, 3, 6, 9, 15])
    assert FAR.time([0, 500, 2000]).tolist() == pytest.approx([0, 10, 28])


def test_attention_times_are_linear_in_sparsity_and_a_power_law_in_length():
    assert float(TABLE.time(8, 0.25)) == pytest.approx(3.25)
    assert float(TABLE.time(64, 0.7)) == pytest.approx(70.0)
    assert float(TABLE.time(64, 1.0)) == pytest.approx(30.0)  # nothing sparser was measured
    between = float(TABLE.time(8 * 8**0.5, 0.0))
    assert between == pytest.approx((4.0 * 200.0) ** 0.5)
    assert float(TABLE.time(512, 0.0)) == pytest.approx(200.0 * 50.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Link((0.0, 1.0), (1.0, 0.5)), "must not fall"),
        (lambda: Link((1.0,), (1.0,)), "two points or more"),
        (lambda: Link((2.0, 1.0), (1.0, 2.0)), "bytes must be finite and ascend"),
        (lambda: Attention((8, 64), (0.0, 0.5), ((1.0, 2.0), (3.0, 1.0))), "must not rise with sparsity"),
        (lambda: Attention((8, 64), (0.0, 0.5), ((1.0, 0.5),)), "a row for each of the 2 lengths"),
        (lambda: Attention((8,), (0.0, 0.5), ((1.0, 0.5),)), "two lengths"),
    ],
)
def test_tables_that_cannot_be_measurements_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
