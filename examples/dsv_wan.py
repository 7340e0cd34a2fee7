"""Train a small diffusers WanTransformer3DModel with DSV and without, from the same seeds: is the loss the same?

python examples/dsv_wan.py                    # three seeds -> evals/results/dsv-wan-tiny.json; ~5 CPU-minutes
python examples/dsv_wan.py seeds=1 steps=40   # a look
"""

from __future__ import annotations

import sys
import time
from statistics import fmean
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from rich.progress import track
from torch import Tensor, nn

from stepstack.config import ROOT, to_dict
from stepstack.models.video.dsv.config import DsvConfig, Fixed
from stepstack.models.video.dsv.diffusers import enable_dsv
from stepstack.report import jsonl
from stepstack.report.provenance import provenance

FRAMES, SIDE, BATCH, HELD_OUT = 4, 16, 8, 256
# On a CPU nothing is faster sparse, so the dispatch is by hand: every block, once the predictors are good. 400 steps
# are few for the published loss of 0.01, hence the higher switch and learning rate.
SPARSE = DsvConfig(dispatch=Fixed(), cube=(1, 2, 2), sampling=4, switch=0.03, lr=1e-2, lr_sparse=2e-3)


def videos(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents [count, 4, FRAMES, SIDE, SIDE] of a moving blob, and its text: two embeddings of colour and direction.

    The blob has one of four colours and moves two pixels a frame in one of four directions, wrapping around.
    """
    colour, way = torch.randint(4, (2, count), generator=random)
    start = torch.rand(count, 1, 2, generator=random) * SIDE
    motion = torch.tensor([[0.0, 2.0], [0.0, -2.0], [2.0, 0.0], [-2.0, 0.0]])[way][:, None]
    centre = start + torch.arange(FRAMES)[:, None] * motion
    away = (torch.arange(SIDE) - centre[..., None] + SIDE / 2) % SIDE - SIDE / 2
    row, column = torch.exp(-(away**2) / 4.5).unbind(2)
    light = torch.eye(4)[colour][:, :, None, None, None] * (row[..., :, None] * column[..., None, :])[:, None]
    return 4 * light - 0.5, 4 * torch.stack((torch.eye(16)[colour], torch.eye(16)[4 + way]), 1)


def flow_loss(model: nn.Module, count: int, random: torch.Generator) -> Tensor:
    """Loss of flow matching: the mean squared error of the velocity, at logit-normal times."""
    latents, text = videos(count, random)
    noise = torch.randn(latents.shape, generator=random)
    t = torch.sigmoid(torch.randn(count, 1, 1, 1, 1, generator=random))
    velocity = model((1 - t) * latents + t * noise, 1000 * t.flatten(), text).sample
    return (velocity - (noise - latents)).square().mean()


def train(seed: int, steps: int, config: DsvConfig | None) -> dict[str, Any]:
    torch.manual_seed(seed)
    model: Any = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=64,
        ffn_dim=128,
        num_layers=2,
    )
    dsv = enable_dsv(model, config) if config else None
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    random, log, began = torch.Generator().manual_seed(seed), [], time.process_time()
    for _ in track(range(steps), f"seed {seed}, {'DSV' if config else 'dense'}"):
        loss = flow_loss(model, BATCH, random)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if dsv:
            dsv.step()
            log.append({"loss": loss.item(), **dsv.metrics()})
    model.eval()
    with torch.no_grad():
        held_out = flow_loss(model, HELD_OUT, torch.Generator().manual_seed(0)).item()
    result = {"seed": seed, "held_out": held_out, "cpu_s": time.process_time() - began}
    return result | ({"dsv": summary(log), "maps": dsv.maps()} if dsv else {})


def summary(log: list[dict[str, float]]) -> dict[str, float]:
    """Means over the steps of stage 2, and the number of dense steps before it."""
    sparse = [row for row in log if row.get("dsv/stage") == 2]
    names = ("sparsity", "token_sparsity", "density", "mass", "recall", "pooled_recall", "loss", "sparse")
    means = {name: fmean(row[f"dsv/{name}"] for row in sparse) for name in names} if sparse else {}
    return {"dense_steps": len(log) - len(sparse), **means}


def main(options: list[str]) -> None:
    settings = {"seeds": 3, "steps": 400} | {key: int(value) for key, _, value in (o.partition("=") for o in options)}
    seeds, steps = range(1, settings["seeds"] + 1), settings["steps"]
    result: dict[str, Any] = {"example": "dsv-wan-tiny", "steps": steps, "config": to_dict(SPARSE)}
    result["dense"] = [train(seed, steps, None) for seed in seeds]
    result["sparse"] = [train(seed, steps, SPARSE) for seed in seeds]
    result["provenance"] = provenance()
    for dense, sparse in zip(result["dense"], result["sparse"], strict=True):
        print(f"seed {dense['seed']}: dense {dense['held_out']:.4f}, DSV {sparse['held_out']:.4f}, {sparse['dsv']}")
    if options:
        return
    file = ROOT / "evals" / "results" / "dsv-wan-tiny.json"
    jsonl.write_json_atomic(file, result)
    print(f"-> {file}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
