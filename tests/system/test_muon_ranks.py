"""Muon on weights that FSDP2 has sharded takes the steps of one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from stepstack.core.muon import MuonOptimizer
from tests.system.ranks import run

BATCH = 12


def stepped(rank: int, size: int) -> dict[str, Tensor]:
    """The weights after three steps, in float64. 9 and 5 rows divide by neither 2 nor 4 ranks; 2 rows of the last are
    fewer than the ranks, some of which then hold nothing of it."""
    torch.manual_seed(0)
    shapes = ((6, 9), (9, 5), (5, 9), (9, 2))
    module = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in shapes)).double()
    if size > 1:
        fully_shard(module, mesh=torch.distributed.init_device_mesh("cpu", (size,)))
    optimizer = MuonOptimizer(module.parameters(), lr=0.1)
    for step in range(3):
        x = torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)[rank::size]
        (module(x).square().sum() * size / BATCH).backward()  # FSDP averages over ranks
        optimizer.step()
        optimizer.zero_grad()
    if size > 1:
        buffers = [optimizer.state[p]["momentum_buffer"] for p in module.parameters()]
        assert all(isinstance(x, DTensor) for x in (*module.parameters(), *buffers))
    with torch.no_grad():
        return {name: p.full_tensor() if size > 1 else p.detach() for name, p in module.named_parameters()}


@pytest.mark.parametrize("size", [2, 4])
def test_sharded_weights_take_the_steps_of_whole_ones(tmp_path, size):
    want = stepped(0, 1)
    for weights in run(tmp_path / "ranks", size, stepped, size):
        for name, value in want.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-9, msg=name)
