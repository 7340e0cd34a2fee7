"""`stepstack bench stepvideo`: a whole training step of VideoDiT, dense against DSV at a given sparsity.

One model exchanges its attention: forward with gradient checkpointing, backward, clipping, AdamW, and with DSV also the
learning of the predictors on each fourth step. Weights are random and sparsity is set by hand, so the lists hold
arbitrary blocks. The time is that of the sparsity, not of a training that reached it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import nn

from stepstack.diffusion.batch import LatentMicroBatch
from stepstack.loops.diffusion import matching
from stepstack.models.video.dit import Dense, VideoDiT
from stepstack.models.video.dsv.config import DsvConfig, Fixed
from stepstack.models.video.dsv.diffusers import enable_dsv
from stepstack.models.video.dsv.handle import Dsv
from stepstack.models.video.dsv.speed import device_name, synchronize
from stepstack.models.video.grid import Grid
from stepstack.report.provenance import describe, provenance
from stepstack.terminal import console

GRIDS: tuple[Grid, ...] = ((32, 32, 32), (64, 32, 32), (128, 32, 32))  # 32K, 64K, 128K tokens
GOAL = 3.0  # dense / DSV at 128K tokens; the paper reports 3.02 (arXiv 2502.07590, up to 130K tokens)
CHANNELS, TEXTS = 16, ((2048, 320), (896, 77))  # channels of latents; width and tokens of the two prompt encoders


@dataclass(frozen=True)
class Case:
    """Shape of a model with ``layers`` and ``heads`` of ``width``, and DSV by ``config`` with every head at
    ``sparsity``."""

    layers: int
    heads: int
    width: int
    sparsity: float
    config: DsvConfig

    def model(self, device: torch.device) -> VideoDiT:
        split = (self.width // 2, self.width // 4, self.width // 4)
        (text, _), (clip, _) = TEXTS
        with torch.device(device):
            dit = VideoDiT(
                layers=self.layers,
                heads=self.heads,
                head_width=self.width,
                split=split,
                channels=CHANNELS,
                text_channels=(text, clip),
            )
        dit.enable_gradient_checkpointing()
        return dit.train()

    @property
    def state(self) -> dict[str, Any]:
        return {"stage": 2, "sparsity": [[self.sparsity] * self.heads] * self.layers}


def measure(
    rounds: int = 8, longest: int = 131072, layers: int = 28, percent: int = 90, seed: int = 0, shortest: int = 32768
) -> dict[str, Any]:
    """Times in the shape of stepvideo-t2v-1b in bfloat16, at every length from ``shortest`` to ``longest`` tokens, at
    ``percent`` sparsity."""
    if not torch.cuda.is_available():
        raise ValueError("bench stepvideo needs a CUDA device and there is none; on a CPU run: bench stepvideo-cpu")
    case = Case(layers, 14, 128, percent / 100, DsvConfig(dispatch=Fixed()))
    grids = [grid for grid in GRIDS if shortest <= tokens(grid) <= longest]
    return measure_grids("stepvideo", case, grids, torch.device("cuda"), rounds, seed)


def measure_grids(
    bench: str, case: Case, grids: Sequence[Grid], device: torch.device, rounds: int, seed: int
) -> dict[str, Any]:
    """Rows by grid. ValueError where ``rounds`` is no multiple of the interval in which the predictors learn."""
    if rounds < 2 or rounds % case.config.every_sparse:
        raise ValueError(f"rounds={rounds} must be a multiple of {case.config.every_sparse}: predictors learn so often")
    torch.manual_seed(seed)
    rows = [compare(case, grid, device, rounds) for grid in track(grids, description=f"bench {bench}")]
    shape = {"layers": case.layers, "heads": case.heads, "head_width": case.width, "cube": case.config.cube}
    where = {"device": device_name(device), "goal": GOAL}
    return {"bench": bench, **shape, **where, "rows": rows, "provenance": provenance()}


def compare(case: Case, grid: Grid, device: torch.device, rounds: int) -> dict[str, Any]:
    """Times of steps in turn, dense and DSV. One interval of the predictors before them warms up."""
    model: Any = case.model(device)
    dsv = enable_dsv(model, case.config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    micro = video(grid, device)
    processors = {"dense": [Dense() for _ in model.blocks], "dsv": [block.attn1.processor for block in model.blocks]}
    seconds: dict[str, list[float]] = {who: [] for who in processors}
    gib = {}  # peak of allocated memory on a GPU
    for _ in range(case.config.every_sparse + rounds):
        for who, chosen in processors.items():
            for block, processor in zip(model.blocks, chosen, strict=True):
                block.attn1.set_processor(processor)
            dsv.load_sampling_state(case.state)  # what a step observes of random weights would change it
            seconds[who].append(step(model, optimizer, micro, dsv if who == "dsv" else None))
            if device.type == "cuda":
                gib[who] = torch.cuda.max_memory_allocated() / 2**30
    timed = {who: spent[case.config.every_sparse :] for who, spent in seconds.items()}
    return {"tokens": tokens(grid), "grid": grid, "sparsity": case.sparsity, "n": rounds, "gib": gib, **figures(timed)}


def step(model: VideoDiT, optimizer: torch.optim.Optimizer, micro: LatentMicroBatch, dsv: Dsv | None) -> float:
    """Seconds of one step: of the clock on a GPU, of the process on a CPU."""
    device = micro.target_BFCYX.device
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    synchronize(device)
    began = clock()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss = matching(model, micro).total
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if dsv is not None:
        dsv.step()
    synchronize(device)
    return clock() - began


def figures(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Means with their standard errors, and dense / DSV with the error that follows from both."""
    means = {who: fmean(spent) for who, spent in seconds.items()}
    errors = {who: stdev(spent) / len(spent) ** 0.5 for who, spent in seconds.items()}
    ratio = means["dense"] / means["dsv"]
    relative = sum((errors[who] / means[who]) ** 2 for who in seconds) ** 0.5
    columns = {f"{who}_s": value for who, value in means.items()} | {f"{who}_stderr": v for who, v in errors.items()}
    return columns | {"ratio": ratio, "ratio_stderr": ratio * relative}


def video(grid: Grid, device: torch.device) -> LatentMicroBatch:
    """Random video at one time, with its conditions."""
    frames, height, width = grid
    shape = (1, frames, CHANNELS, height, width)
    (text, words), (clip, more) = TEXTS
    inputs = {
        "latents_BFCYX": torch.randn(shape),
        "time_B": torch.full((1,), 0.5),
        "text_BLC": torch.randn(1, words, text),
        "text_mask_BL": torch.ones(1, words),
        "clip_BMC": torch.randn(1, more, clip),
        "image_BFCYX": torch.randn(shape),
        "motion_B": torch.full((1,), 5.0),
    }
    return LatentMicroBatch(
        {name: value.to(device) for name, value in inputs.items()}, torch.randn(shape).to(device), 1
    )


def tokens(grid: Grid) -> int:
    return grid[0] * grid[1] * grid[2]


def show(result: dict[str, Any]) -> None:
    shape = f"{result['layers']} layers, {result['heads']} heads of {result['head_width']}"
    table = Table(title=f"a training step, {shape}, {result['device']}")
    for column in ("tokens", "sparsity", "dense, s", "DSV, s", "ratio", "n"):
        table.add_column(column)
    for row in result["rows"]:
        pairs = [(row[f"{who}_s"], row[f"{who}_stderr"]) for who in ("dense", "dsv")]
        pairs.append((row["ratio"], row["ratio_stderr"]))
        cells = [f"{value:.3f} ± {error:.3f}" for value, error in pairs]
        table.add_row(str(row["tokens"]), f"{row['sparsity']:.2f}", *cells, str(row["n"]))
    out = console()
    out.print(table)
    out.print(f"goal at 131072 tokens: {result['goal']}; {describe(result['provenance'])}")
