"""Portions of a step's groups: all are taken, and each has rows for every process."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stepstack.rl.streaming import portion


@given(st.data(), st.integers(1, 40), st.integers(1, 6))
def test_portions_are_large_enough_and_none_is_left_behind(data, prompts, least):
    left, least = prompts, min(least, prompts)
    while left:
        wanted = left if left < 2 * least else least
        taken = portion(data.draw(st.integers(wanted, left)), left, least)
        assert least <= taken <= left
        left -= taken
