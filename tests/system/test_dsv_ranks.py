"""Two processes with half a batch each train the predictors as one process does with all of it."""

from __future__ import annotations

import pytest
import torch

from stepstack.models.video.dsv.config import DsvConfig, Fixed
from stepstack.models.video.dsv.core import DsvAttention
from stepstack.models.video.dsv.handle import Dsv
from tests.system.ranks import run

CONFIG = DsvConfig(dispatch=Fixed(), cube=(2, 2, 2), rank=8, sampling=2, switch=1e9, warmup=2)


def steps(rank: int, ranks: int) -> tuple[list[torch.Tensor], dict[str, float]]:
    """The predictor's weights and the metrics after three steps on this rank's part of every batch."""
    torch.manual_seed(0)
    attention = DsvAttention(0, dim=12, heads=2, config=CONFIG, speed=None)
    dsv = Dsv([attention], CONFIG, None)
    for _ in range(3):
        x, qkv = torch.randn(4, 36, 12), torch.randn(3, 4, 2, 36, 8) * 3
        part = slice(4 * rank // ranks, 4 * (rank + 1) // ranks)
        attention.attend(x[part], *qkv[:, part], dsv.call((3, 3, 4), x.device, training=True))
        dsv.step()
    return [attention.predictor.query.detach(), attention.predictor.key.detach()], dsv.metrics()


@pytest.mark.rounding
def test_ranks_learn_what_one_process_learns(tmp_path):
    alone, metrics = steps(0, 1)
    first, second = run(tmp_path / "ranks", 2, steps, 2)
    for one, other, whole in zip(first[0], second[0], alone, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-5)
    assert first[1] == second[1]
    assert first[1].keys() == metrics.keys()
    assert first[1]["dsv/stage"] == metrics["dsv/stage"] == 2
    for name in ("dsv/sparsity", "dsv/token_sparsity", "dsv/loss"):
        torch.testing.assert_close(first[1][name], metrics[name], rtol=1e-4, atol=1e-5)
