"""The selection kernels in Triton's interpreter against their references."""

from __future__ import annotations

import pytest
import torch

from stepstack.ops.select import block_means, low_rank_selection, pooled_selection, top_blocks
from stepstack.ops.selection import Blocks
from tests.kernels.oracle import ragged


@pytest.mark.parametrize("select", [pooled_selection, low_rank_selection])
def test_the_kernels_choose_what_the_reference_chooses(select):
    queries, keys = ragged(40, 16, seed=3), ragged(50, 16, seed=4)
    random = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 40, 16, generator=random), torch.randn(1, 2, 50, 16, generator=random)
    wanted, result = (select(q, k, queries, keys, [2, 5], impl=impl) for impl in ("reference", "triton"))
    result.check()
    assert torch.equal(result.mask(), wanted.mask())
    assert torch.equal(result.offsets, wanted.offsets)


def test_means_of_ragged_blocks():
    blocks = ragged(40, 16, seed=5)
    x = torch.randn(2, 1, 40, 24, generator=torch.Generator().manual_seed(1)).half()
    torch.testing.assert_close(block_means(x, blocks, "triton"), block_means(x, blocks, "reference"))


def test_the_top_of_rows_longer_than_a_program_holds_with_ties_and_infinities():
    random = torch.Generator().manual_seed(2)
    scores = torch.randint(-2, 3, (5, 100), generator=random) * 0.5
    scores[0] = 0.0
    scores[0, 3] = -0.0  # equal to 0
    scores[1] = torch.randn(100, generator=random) * 1e30
    scores[2] = float("-inf")
    scores[2, 70] = float("inf")
    keep = torch.tensor([7, 64, 5, 100, 33], dtype=torch.int32)
    result = top_blocks(scores, keep, int(keep.sum()), "triton")
    assert torch.equal(result, top_blocks(scores, keep, int(keep.sum()), "reference"))


def test_even_blocks_of_one_token():
    one = Blocks.even(6, 1)
    x = torch.eye(6)[None, None]
    assert pooled_selection(x, x, one, one, [1], impl="triton").indices.tolist() == [0, 1, 2, 3, 4, 5]
