"""Selections by score: as torch.topk chooses, ties to the lower block, and scores as written in the papers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.ops import select
from stepstack.ops.select import low_rank_selection, pooled_selection, top_blocks
from stepstack.ops.selection import Blocks
from tests.kernels.oracle import ragged


@settings(deadline=None)
@given(st.data())
def test_the_top_is_torchs_and_ties_go_to_the_lower_block(data):
    width = data.draw(st.integers(1, 9))
    rows = data.draw(st.lists(st.lists(st.integers(-2, 2), min_size=width, max_size=width), min_size=1, max_size=4))
    keep = data.draw(st.lists(st.integers(1, width), min_size=len(rows), max_size=len(rows)))
    scores = torch.tensor(rows, dtype=torch.float32)
    result = top_blocks(scores, torch.tensor(keep, dtype=torch.int32), sum(keep), "reference").split(keep)
    for row, k, taken in zip(scores, keep, result, strict=True):
        assert torch.equal(row[taken.long()].sort(descending=True).values, row.topk(k).values)
        assert taken.tolist() == sorted(sorted(range(width), key=lambda i: (-row[i], i))[:k])


@pytest.fixture(params=[1 << 26, 1], ids=["all heads at once", "head by head"])
def sequences(request, monkeypatch):
    monkeypatch.setattr(select, "MAX_SCORES", request.param)
    random = torch.Generator().manual_seed(0)
    queries, keys = ragged(40, 9, seed=3), ragged(50, 12, seed=4)
    return torch.randn(2, 3, 40, 8, generator=random), torch.randn(2, 3, 50, 8, generator=random), queries, keys


KEEP = (1, 4, 2)


def by_brute_force(score, q, k, queries, keys) -> torch.Tensor:
    """The mask of the highest scores; ``score`` takes the tokens of a query block and of a key block."""
    lengths = queries.lengths.tolist(), keys.lengths.tolist()
    mask = torch.zeros(2, 3, queries.count, keys.count, dtype=torch.bool)
    for b in range(2):
        for h, keep in enumerate(KEEP):
            for i, some in enumerate(q[b, h].split(lengths[0])):
                scores = torch.stack([score(some, others) for others in k[b, h].split(lengths[1])])
                mask[b, h, i, scores.topk(keep).indices] = True
    return mask


def test_pooled_selection_multiplies_means(sequences):
    wanted = by_brute_force(lambda q, k: q.mean(0) @ k.mean(0), *sequences)
    result = pooled_selection(*sequences, torch.tensor(KEEP))
    result.check()
    assert torch.equal(result.mask(), wanted)


def test_low_rank_selection_adds_up_exponentials(sequences):
    wanted = by_brute_force(lambda q, k: (0.5 * q.mean(0) @ k.T).exp().sum(), *sequences)
    result = low_rank_selection(*sequences, KEEP, scale=0.5)
    result.check()
    assert torch.equal(result.mask(), wanted)


def test_it_finds_the_mass_that_a_mean_hides():
    """One strong key among seven opposite ones: their mean is no better than a block of nothing, their mass is."""
    q = torch.ones(1, 1, 8, 1)
    k = torch.cat([torch.zeros(8), torch.tensor([6.0]), torch.full((7,), -1.0)])[None, None, :, None]
    blocks = Blocks.even(8, 8), Blocks.even(16, 8)
    assert pooled_selection(q, k, *blocks, [1]).indices.tolist() == [0]
    assert low_rank_selection(q, k, *blocks, [1]).indices.tolist() == [1]


@pytest.mark.parametrize("keep", [(1, 2), (0, 1, 1), (1, 1, 99)])
def test_a_wrong_keep_is_named(sequences, keep):
    with pytest.raises(ValueError, match=r"keep must be one number of 1\.\.\d+ for each of 3 heads"):
        pooled_selection(*sequences, keep)


def test_tokens_that_do_not_fit_are_named(sequences):
    q, k, queries, keys = sequences
    with pytest.raises(ValueError, match="q has 39 tokens on cpu, its blocks 40"):
        pooled_selection(q[:, :, 1:], k, queries, keys, KEEP)
    with pytest.raises(ValueError, match="equal but for tokens"):
        pooled_selection(q[..., 1:], k, queries, keys, KEEP)
