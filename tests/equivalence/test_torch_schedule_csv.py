"""Exported plans run in torch's own pipeline runtime on two processes, with the gradients of one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

from stepstack.planning.pipeline import export
from tests.system import ranks
from tests.unit.planning.test_pipeline_export import chain, shuffled

WIDTH, STAGES, MICROBATCHES = 8, 4, 4
torch.set_num_threads(1)


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(STAGES)]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2 * MICROBATCHES, WIDTH, generator=generator) for _ in range(2))  # type: ignore[return-value]


def loss(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).sum()


def gradients(modules: dict[int, nn.Module]) -> dict[str, Tensor]:
    return {f"{n}.{name}": p.grad for n, m in modules.items() for name, p in m.named_parameters() if p.grad is not None}


def run_in_torch(rank: int, file: str, order: tuple[int, ...]) -> dict[str, Tensor]:
    """Gradients of this rank's stages, with the batch in the order in which the file counts its microbatches."""
    mine = {number: layer for number, layer in enumerate(layers()) if number % 2 == rank}
    device = torch.device("cpu")
    stages = [PipelineStage(layer, number, STAGES, device) for number, layer in mine.items()]
    schedule = _PipelineScheduleRuntime(stages, MICROBATCHES, loss_fn=loss, scale_grads=False)
    schedule._load_csv(file, format="compute_only")
    inputs, targets = (torch.cat([rows.chunk(MICROBATCHES)[at] for at in order]) for rows in batch())
    if rank == 0:
        schedule.step(inputs)
    else:
        schedule.step(target=targets, losses=[])
    return gradients(mine)


@pytest.mark.parametrize("split", [False, True])
def test_gradients_are_those_of_one_process(tmp_path, split):
    plan = shuffled(chain(2, STAGES // 2, MICROBATCHES, split=split), seed=3)
    order = export.microbatches(plan)
    assert order != tuple(sorted(order))  # so that numbers really change
    file = tmp_path / "plan.csv"
    file.write_text(export.as_csv(plan))
    export.read_csv(file)
    found = ranks.run(tmp_path / "ranks", 2, run_in_torch, str(file), order)
    whole = layers()
    loss(nn.Sequential(*whole)(batch()[0]), batch()[1]).backward()
    expected = gradients(dict(enumerate(whole)))
    both = found[0] | found[1]
    assert both.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(both[name], value, rtol=0, atol=1e-6 * float(value.abs().max()), msg=name)
