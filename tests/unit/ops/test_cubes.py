"""Cubes of a video: every cube is one run of tokens, nothing is padded, and the way back is exact."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.ops.cubes import Cubes

sides = st.tuples(*[st.integers(1, 7)] * 3)


@settings(deadline=None)
@given(sides, sides)
def test_a_block_holds_exactly_one_cube(video, cube):
    result = Cubes.build(video, cube)
    result.blocks.check()
    positions = list(product(*map(range, video)))
    values = [
        [tuple(p // c for p, c in zip(positions[t], cube, strict=True)) for t in part]
        for part in result.order.split(result.blocks.lengths.tolist())
    ]
    assert all(len(set(block)) == 1 for block in values)
    counts = [-(-v // c) for v, c in zip(video, cube, strict=True)]
    assert [block[0] for block in values] == list(product(*map(range, counts)))
    assert result.blocks.size == result.blocks.lengths.max()


@settings(deadline=None)
@given(sides, sides)
def test_there_and_back(video, cube):
    result = Cubes.build(video, cube)
    x = torch.arange(result.order.shape[0] * 2.0).view(1, -1, 2)
    assert torch.equal(result.scatter(result.gather(x)), x)
    assert torch.equal(result.gather(x.mT, dim=2), result.gather(x).mT)


def test_wan_480p_needs_no_padding():
    """Wan's 21 x 30 x 52 latent: cubes of 64 tokens would pad 32,760 tokens to 39,936."""
    blocks = Cubes.build((21, 30, 52)).blocks
    assert (blocks.tokens, blocks.count) == (32760, 6 * 8 * 13)
    assert set(blocks.lengths.tolist()) == {64, 32, 16, 8}


def test_a_side_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Cubes.build((4, 0, 4))
