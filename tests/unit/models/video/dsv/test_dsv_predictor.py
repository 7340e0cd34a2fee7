"""The low-rank predictors: RoPE, loss and gradient against plain mathematics, and what position is worth."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepstack.config import ConfigError
from stepstack.models.video.dsv import observe as looking
from stepstack.models.video.dsv.config import rope_split
from stepstack.models.video.dsv.layout import CubeLayout
from stepstack.models.video.dsv.observe import HEAD_METRICS, observe
from stepstack.models.video.dsv.predictor import LowRankPredictor, low_rank, project, rope_angles, rotate, score_loss

GRID, CUBE, HEADS, DIM = (3, 4, 5), (2, 2, 2), 2, 24


def test_the_rank_splits_into_a_half_and_two_quarters():
    assert rope_split(16) == (8, 4, 4)
    for rank in (0, 4, 12):
        with pytest.raises(ConfigError, match="multiple of 8"):
            rope_split(rank)


def test_golden_angles():
    angles = rope_angles((2, 2, 3), 8)  # pairs: two of the frame, one of the row, one of the column
    assert angles.shape == (12, 4)
    assert angles[-1].tolist() == pytest.approx([1.0, 0.01, 1.0, 2.0])
    assert angles[4].tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0])


@given(st.integers(-3, 3))
def test_rotated_products_depend_on_the_distance_only(shift):
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    angles = rope_angles((9, 9, 9), 16).double().view(9, 9, 9, 8)

    def product(a, b):
        return (rotate(q, angles[a]) * rotate(k, angles[b])).sum().item()

    here, there = product((4, 4, 4), (5, 3, 4)), product((4 + shift, 4, 4 - shift), (5 + shift, 3, 4 - shift))
    assert here == pytest.approx(there, abs=1e-5)


def test_golden_loss():
    true = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert score_loss(true, true).item() == pytest.approx(0, abs=1e-6)
    assert score_loss(2 * true, true).item() == pytest.approx(0.05)  # the direction is right, the length is not
    low = torch.tensor([[4.0, -3.0], [1.0, 1.0]])  # at right angles, and at 45 degrees
    first, second = 0.95 + 0.05 * 2, 0.95 * (1 - math.sqrt(0.5)) + 0.05
    assert score_loss(low, true).item() == pytest.approx((first + second) / 2)
    assert score_loss(0 * true, true).isfinite()
    assert score_loss(true, 0 * true).isfinite()


def test_gradients_by_finite_differences():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 6, generator=random, dtype=torch.float64)
    true = torch.randn(1, 2, 8, 8, generator=random, dtype=torch.float64)
    angles = rope_angles((2, 2, 2), 8).double()
    weights = [torch.randn(16, 6, generator=random, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def loss(query, key):
        q, k = (project(x, w, 2, angles) for w in (query, key))
        return score_loss(q @ k.transpose(-1, -2), true)

    assert torch.autograd.gradcheck(loss, weights)


@pytest.fixture
def attention():
    random = torch.Generator().manual_seed(1)
    layout = CubeLayout.build(GRID, CUBE, 8, torch.device("cpu"))
    x = torch.randn(2, layout.tokens, DIM, generator=random)
    q, k = torch.randn(2, 2, HEADS, layout.tokens, 16, generator=random) * 3
    torch.manual_seed(0)
    return LowRankPredictor(DIM, HEADS, 8), x, q, k, layout


@pytest.mark.parametrize("scores", [1 << 26, 1], ids=["at once", "cube by cube"])
def test_the_inner_backward_is_autograds_whatever_the_pieces(attention, scores, monkeypatch):
    monkeypatch.setattr(looking, "MAX_SCORES", scores)
    predictor, x, q, k, layout = attention
    sampled = torch.tensor([0, 3, layout.blocks.count - 1])  # the last is a smaller one
    observed = observe(predictor, x, q, k, layout, sampled, 0.9, None)
    rows = layout.cubes.order[(layout.blocks.block_of_token[:, None] == sampled).any(-1)]
    weights = [w.detach().requires_grad_() for w in (predictor.query, predictor.key)]
    low_q, low_k = low_rank(x, *weights, HEADS, layout.angles)
    true = q @ k.transpose(-1, -2) / 4
    loss = score_loss((low_q @ low_k.transpose(-1, -2))[:, :, rows], true[:, :, rows])
    assert observed.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for mine, plain in zip(observed.gradients, torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


def test_what_is_seen_is_what_counting_says(attention):
    predictor, x, q, k, layout = attention
    sampled = torch.arange(layout.blocks.count)
    observed = dict(
        zip(HEAD_METRICS, observe(predictor, x, q, k, layout, sampled, 0.9, None).metrics_by_head, strict=True)
    )
    share = (layout.to_cubes(q) @ layout.to_cubes(k).transpose(-1, -2) / 4).softmax(-1)
    starts = layout.blocks.starts.tolist()
    spans = [slice(a, b) for a, b in itertools.pairwise(starts)]
    for head in range(HEADS):
        free_tokens = [1 - fewest(row) / layout.tokens for b in range(2) for row in share[b, head]]
        assert observed["token_sparsity"][head].item() == pytest.approx(sum(free_tokens) / len(free_tokens), abs=1e-5)
        masses = [[share[b, head, s][:, t].sum(-1).mean() for t in spans] for b in range(2) for s in spans]
        free = [1 - fewest(torch.stack(row)) / len(spans) for row in masses]
        assert observed["sparsity"][head].item() == pytest.approx(sum(free) / len(free), abs=1e-5)
    assert (observed["recall"] <= 1 + 1e-6).all()
    assert (observed["mass"] <= 1 + 1e-6).all()


def fewest(shares: torch.Tensor) -> int:
    """How many of the largest must be added up to reach nine tenths, by adding them up."""
    mass, count = 0.0, 0
    for share in sorted(shares.tolist(), reverse=True):
        if mass >= 0.9 * float(shares.sum()):
            return count
        mass, count = mass + share, count + 1
    return count


def learnt(grid, with_position: bool, steps: int = 150) -> tuple[float, float]:
    """Loss, and recall of each query's top fifth of keys, after training on an attention with RoPE-3D whose content is
    of low rank, as a trained model's is, so that position decides much."""
    torch.manual_seed(0)
    angles = rope_angles(grid, 32)
    x = torch.randn(2, angles.shape[0], 4) @ torch.randn(4, 32) / 4 + torch.randn(32)
    q, k = (project(x, torch.randn(64, 32) / 6, 2, angles) for _ in range(2))
    true = q @ k.transpose(-1, -2) / 32**0.5
    predictor = LowRankPredictor(32, 2, 16)
    low_angles = rope_angles(grid, 16) * with_position
    weights = [w.requires_grad_() for w in (predictor.query, predictor.key)]
    optimizer = torch.optim.Adam(weights, lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        low_q, low_k = predictor(x, low_angles)
        low = low_q @ low_k.transpose(-1, -2)
        loss = score_loss(low, true)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    count = angles.shape[0] // 5
    mine, best = (torch.zeros_like(y).scatter(-1, y.topk(count).indices, 1) for y in (low, true))
    return loss.item(), ((mine * best).sum(-1) / count).mean().item()


def test_without_its_position_a_predictor_is_stuck():
    loss, recall = learnt((3, 6, 6), with_position=True)
    assert (loss <= 0.02, recall >= 0.85) == (True, True), (loss, recall)
    blind_loss, blind_recall = learnt((3, 6, 6), with_position=False)
    assert (blind_loss >= 3 * loss, blind_recall <= recall - 0.1) == (True, True), (blind_loss, blind_recall)
