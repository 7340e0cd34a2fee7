"""Blocks and selections: lists and masks say the same, the inverse is the transpose, and what is wrong is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.ops.selection import Blocks, Selection


def blocks(*starts: int, size: int = 8) -> Blocks:
    return Blocks(torch.tensor(starts, dtype=torch.int32), size)


@st.composite
def masks(draw) -> tuple[torch.Tensor, Blocks, Blocks]:
    """Any mask; among them empty lists, full ones, lists of one block and heads without keys."""
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    sides = [draw(st.lists(st.integers(1, 8), min_size=1, max_size=5)) for _ in range(2)]
    queries, keys = (blocks(*(sum(side[:i]) for i in range(len(side) + 1))) for side in sides)
    rows = batch * heads * queries.count
    row = st.one_of(
        st.just([False] * keys.count),
        st.just([True] * keys.count),
        st.integers(0, keys.count - 1).map(lambda at: [i == at for i in range(keys.count)]),
        st.lists(st.booleans(), min_size=keys.count, max_size=keys.count),
    )
    mask = torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)), dtype=torch.bool)
    return mask.view(batch, heads, queries.count, keys.count), queries, keys


@settings(deadline=None)
@given(masks())
def test_a_mask_survives_the_round_trip(drawn):
    mask, queries, keys = drawn
    selection = Selection.from_mask(mask, queries, keys)
    assert torch.equal(selection.mask(), mask)
    assert selection.counts.tolist() == mask.sum(-1).flatten().tolist()
    assert sorted(selection.order.tolist()) == list(range(selection.rows))
    assert selection.counts[selection.order.long()].diff().le(0).all()


@settings(deadline=None)
@given(masks())
def test_the_inverse_is_the_transpose_and_its_own_inverse(drawn):
    mask, queries, keys = drawn
    selection = Selection.from_mask(mask, queries, keys)
    inverse = selection.inverse
    assert torch.equal(inverse.mask(), mask.mT)
    assert selection.inverse is inverse
    again = Selection(keys, queries, inverse.batch, inverse.heads, inverse.offsets, inverse.indices).inverse
    assert torch.equal(again.offsets, selection.offsets)
    assert torch.equal(again.indices, selection.indices)


@settings(deadline=None)
@given(masks())
def test_density_counts_pairs_of_tokens(drawn):
    mask, queries, keys = drawn
    selection = Selection.from_mask(mask, queries, keys)
    tokens = mask[:, :, queries.block_of_token][..., keys.block_of_token]
    torch.testing.assert_close(selection.density, tokens.float().mean((-1, -2)))


@settings(deadline=None)
@given(masks())
def test_check_passes_what_has_keys_in_every_head(drawn):
    mask, queries, keys = drawn
    selection = Selection.from_mask(mask, queries, keys)
    if mask.flatten(2).any(-1).all():
        selection.check()
    else:
        with pytest.raises(ValueError, match=r"batch \d, head \d has no keys at all"):
            selection.check()


def test_even_blocks_end_with_the_rest():
    result = Blocks.even(10, 4)
    assert result.starts.tolist() == [0, 4, 8, 10]
    assert (result.count, result.tokens, result.lengths.tolist()) == (3, 10, [4, 4, 2])
    assert result.block_of_token.tolist() == [0] * 4 + [1] * 4 + [2] * 2


def test_dense_sees_all():
    assert Selection.dense(Blocks.even(10, 4), Blocks.even(6, 3), 2, 3).density.eq(1).all()


GOOD = Selection.from_mask(torch.ones(1, 2, 2, 3, dtype=torch.bool), blocks(0, 4, 8), blocks(0, 4, 8, 12))
FIRST_HEAD = torch.tensor([0, 3, 6, 6, 6], dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": GOOD.indices + 1}, "batch 0, head 0, query block 0: key block 3 is not among 0..2"),
        ({"indices": GOOD.indices - 1}, "key block -1 is not among 0..2"),
        ({"indices": GOOD.indices.flip(0)}, "must ascend without duplicates, not 2, 1"),
        ({"indices": GOOD.indices * 0}, "must ascend without duplicates, not 0, 0"),
        ({"indices": GOOD.indices.long()}, "indices must be int32"),
        ({"offsets": GOOD.offsets.float()}, "offsets must be int32 or int64"),
        ({"offsets": GOOD.offsets[:-1]}, "offsets must be int32 or int64"),
        ({"offsets": GOOD.offsets + 1}, "offsets must begin at 0"),
        ({"offsets": GOOD.offsets.flip(0)}, "offsets must begin at 0"),
        ({"offsets": FIRST_HEAD, "indices": GOOD.indices[:6]}, "batch 0, head 1 has no keys at all"),
        ({"indices": GOOD.indices.to("meta")}, "offsets is on cpu, indices on meta"),
        ({"queries": blocks(0, 8, 8)}, "queries.starts must begin at 0 and increase strictly"),
        ({"keys": blocks(1, 4, 8, 12)}, "keys.starts must begin at 0 and increase strictly"),
        ({"keys": blocks(0, 4, 8, 12, size=3)}, "keys: block 0 has 4 tokens, over self.size=3"),
        ({"keys": Blocks(torch.tensor([0, 4, 8, 12]), 8)}, "keys.starts must be int32"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    GOOD.check()
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **change).check()


def test_a_mask_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match=r"the mask must be bool \[batch, heads, 2, 3\]"):
        Selection.from_mask(torch.ones(1, 2, 3, 2, dtype=torch.bool), GOOD.queries, GOOD.keys)
    with pytest.raises(ValueError, match="at least one token"):
        Blocks.even(0, 4)
