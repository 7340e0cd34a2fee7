"""Ranks that share videos train the DiT that one process trains: outputs, gradients, weights, figures, checkpoints."""

from __future__ import annotations

import os
import socket
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from stepstack.config import Launch, Save
from stepstack.core.config import AdamW, TrainableConfig
from stepstack.core.run import Run
from stepstack.diffusion.config import DiffusionConfig
from stepstack.diffusion.latents import Latents, LatentWriter
from stepstack.diffusion.preference import video_loss, video_pairs
from stepstack.loops import diffusion, preference
from stepstack.models.video.dit import VideoDiT
from stepstack.models.video.prompt_encoders import WordHashes
from stepstack.parallel.ulysses import Context, context_parallel
from stepstack.tuning.config import PreferenceLoss
from tests.system.processes import rows
from tests.system.ranks import run

SHAPE = {"layers": 2, "heads": 4, "head_width": 8, "channels": 3, "text_channels": (8, 6), "split": (4, 2, 2)}
ENCODER = WordHashes(widths=(8, 6), lengths=(4, 3))
# An eps above most gradients: plain Adam's first step makes of a rounding error one of the size of the learning rate.
SMOOTH = AdamW(lr=1e-3, eps=1e-3)
APART = 5e-7  # of weights of about 1 and below: a few roundings in float32; they move by 4e-3
GRIDS = ((3, 3, 5), (1, 3, 1))  # 45 and 3 tokens: neither divides by the ranks, and of 3 the first of 4 has none


def model(dtype: torch.dtype = torch.float32) -> VideoDiT:
    torch.manual_seed(3)
    return VideoDiT(**SHAPE).to(dtype)


def inputs(grid: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    f, h, w = grid
    latents, image = (torch.randn(2, f, 3, h, w, generator=draw, dtype=dtype) for _ in range(2))
    text, clip = (torch.randn(2, n, c, generator=draw, dtype=dtype) for n, c in ((4, 8), (3, 6)))
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    return {
        "latents_BFCYX": latents,
        "time_B": torch.tensor([0.2, 0.7], dtype=dtype),
        "text_BLC": text,
        "text_mask_BL": mask,
        "clip_BMC": clip,
        "image_BFCYX": image,
        "motion_B": torch.tensor([1.0, 5.0], dtype=dtype),
    }


def passed(dit: torch.nn.Module, grid: tuple[int, int, int], size: int) -> dict[str, Any]:
    """Output and gradients of a pass in which each rank counts its part of the loss."""
    out = dit(**inputs(grid))
    (out.square().sum() / size).backward()
    return {"out": out.detach(), **{name: p.grad for name, p in dit.named_parameters()}}


def shared(rank: int, size: int, grid: tuple[int, int, int], again: bool) -> dict[str, Any]:
    dit = model(torch.float64)
    if again:
        dit.enable_gradient_checkpointing()
    context = Context(dit, size)
    with context:
        found = passed(dit, grid, size)
    moved = Counter(context.moved)
    with torch.no_grad():
        alone = dit(**inputs(grid))  # each for itself: nobody else is asked
    assert context.moved == moved
    return {**found, "alone": alone, "moved": moved}


@pytest.mark.parametrize(
    ("size", "grid", "again"), [(2, GRIDS[0], False), (2, GRIDS[0], True), (4, GRIDS[0], False), (4, GRIDS[1], False)]
)
def test_output_and_gradients_are_those_of_one_process(tmp_path, size, grid, again):
    want = passed(model(torch.float64), grid, 1)
    ranks = run(tmp_path / "ranks", size, shared, size, grid, again)
    for rank in ranks:
        torch.testing.assert_close(rank["out"], want["out"], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(rank["alone"], want["out"], rtol=1e-10, atol=1e-10)
    for name in want.keys() - {"out"}:
        torch.testing.assert_close(sum(rank[name] for rank in ranks), want[name], rtol=1e-9, atol=1e-9, msg=name)


def test_bytes_are_those_of_ulysses(tmp_path):
    """A layer moves q, k, v and the output once a pass, but for what stays: 4 S D (n - 1) / n, of all ranks."""
    ranks = run(tmp_path / "ranks", 4, shared, 4, (2, 2, 3), False)
    each, width, batch, tokens = 8, SHAPE["heads"] * SHAPE["head_width"], 2, 12
    for when in ("forward", "backward"):
        heads = sum(rank["moved"]["hcp", when, "sent"] for rank in ranks)
        assert heads == SHAPE["layers"] * 4 * batch * tokens * width * each * 3 // 4
        assert sum(rank["moved"]["whole", when, "sent"] for rank in ranks) == 3 * batch * tokens * 3 * each


def sharded(rank: int, size: int) -> dict[str, Any]:
    """FSDP2 of every block and of the rest, as accelerate wraps it; gradients come back whole, averaged over ranks."""
    dit = model(torch.float64)
    mesh = torch.distributed.init_device_mesh("cpu", (size,))
    for block in dit.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(dit, mesh=mesh)
    with Context(dit, size):
        found = passed(dit, GRIDS[0], size)
    return {name: x.full_tensor() * size if isinstance(x, DTensor) else x for name, x in found.items()}


def test_it_goes_with_fully_sharded_weights(tmp_path):
    want = passed(model(torch.float64), GRIDS[0], 1)
    for rank in run(tmp_path / "ranks", 2, sharded, 2):
        for name in want:
            torch.testing.assert_close(rank[name], want[name], rtol=1e-9, atol=1e-9, msg=name)


# -- the loop ----------------------------------------------------------------------------------------------------------


def prepared(folder: Path, pairs: bool) -> Latents:
    writer = LatentWriter(folder, ENCODER, {})
    torch.manual_seed(1)
    for i in range(8):
        shape = (GRIDS[0][0], 3, *GRIDS[0][1:])
        latents = torch.randn(shape)
        writer.add(latents, latents[0], i % 3, f"moves {i % 4}", torch.randn(shape) if pairs else None)
    return Latents(writer.close(), {})


def config(folder: Path, processes: int = 1, context: int = 1, **changes: Any) -> DiffusionConfig:
    base = {
        "recipe": "none",
        "name": "loop",
        "dir": str(folder),
        "steps": 4,
        "batch": 4,
        "micro": 2,
        "eval_every": 0,
        "trackers": (),
        "save": Save(every=2),
        "dit": TrainableConfig(optim=SMOOTH, ema=0.9),
        "launch": Launch(file="cpu-ddp", processes_per_node=processes),
        "context": context,
        "peak_tflops": 1.0,
    }
    return DiffusionConfig(**{**base, **changes})


def trained(
    rank: int, cfg: DiffusionConfig, port: int, latents: Path, pairs: bool = False, stop_after: int | None = None
) -> dict[str, torch.Tensor]:
    """The weights and their average after a run; in several processes, as torchrun would start them."""
    if cfg.launch.processes > 1:
        count = str(cfg.launch.processes)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
    made = Run(cfg, stop_after=stop_after)
    dit = made.trainable("dit", model(), cfg.dit, cfg.steps)
    videos = Latents(latents, {})
    with nullcontext() if stop_after is None else pytest.raises(SystemExit):
        if pairs:
            loss = video_loss(PreferenceLoss(beta=5.0), model())
            preference.train(
                made,
                policy=dit,
                minibatch=lambda step: video_pairs(made, cfg, videos, step),
                loss=lambda batch: loss,
                steps=cfg.steps,
                together=context_parallel(dit.unwrapped, cfg.context),
            )
        else:
            diffusion.train(made, dit=dit, videos=videos, cfg=cfg)
    weights = {name: value.clone() for name, value in dit.named_weights()}
    with dit.averaged():
        return weights | {f"ema.{name}": value.clone() for name, value in dit.named_weights()}


def trained_together(folder: Path, cfg: DiffusionConfig, *arguments: Any) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return run(folder, cfg.launch.processes, trained, cfg, port, *arguments)


@pytest.mark.rounding
@pytest.mark.parametrize(("processes", "context", "pairs"), [(2, 2, False), (4, 2, False), (2, 2, True)])
def test_training_is_that_of_one_process(tmp_path, processes, context, pairs):
    """Two share a video; two groups of two; and pairs of Video-DPO, whose loss needs whole samples."""
    prepared(tmp_path / "latents", pairs)
    want = trained(0, config(tmp_path, name="one"), 0, tmp_path / "latents", pairs)
    cfg = config(tmp_path, processes, context, name="many")
    for weights in trained_together(tmp_path / "ranks", cfg, tmp_path / "latents", pairs):
        assert weights.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=APART, msg=name)
    one, many = rows(tmp_path / "one"), rows(tmp_path / "many")
    assert [row["step"] for row in one] == [1, 2, 3, 4]
    assert one[0]["tokens"] == 4 * 45 * (2 if pairs else 1)
    assert one[0]["dit/grad_norm"] > 0.1
    for a, b in zip(one, many, strict=True):
        assert b.keys() == a.keys()
        for name, value in a.items():
            # A reward is beta times a difference of errors of about 1, which have a few roundings each.
            apart = 5e-6 if name.endswith(("_reward", "margin", "log_ratio_abs_max")) else 1e-12
            assert b[name] == pytest.approx(value, rel=5e-6, abs=apart), name


@pytest.mark.rounding
def test_a_run_goes_on_alone_from_where_two_stopped(tmp_path):
    latents = tmp_path / "latents"
    prepared(latents, pairs=False)
    want = trained(0, config(tmp_path, name="one"), 0, latents)
    trained_together(tmp_path / "ranks", config(tmp_path, 2, 2, name="cut"), latents, False, 2)
    assert [row["step"] for row in rows(tmp_path / "cut")] == [1, 2]
    found = trained(0, config(tmp_path, name="cut"), 0, latents)
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=APART, msg=name)


# -- what does not fit -------------------------------------------------------------------------------------------------


def refused(rank: int) -> list[str]:
    three = VideoDiT(**{**SHAPE, "heads": 3})
    twice = model()
    Context(twice, 2)
    said = []
    for dit in (three, twice):
        try:
            Context(dit, 2)
        except ValueError as error:
            said.append(str(error))
    return said


def test_models_that_cannot_be_shared_are_refused(tmp_path):
    for said in run(tmp_path / "ranks", 2, refused):
        assert said[0] == "2 ranks, 3 heads: both must be multiples of the 2 that share a video"
        assert said[1] == "Ulysses attends here: context parallelism needs Dense"


def test_numbers_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(ValueError, match="context=2 must divide the 3 processes"):
        config(tmp_path, 3, 2, batch=3)
    with pytest.raises(ValueError, match="batch=3 must be a multiple of 2, processes by context"):
        config(tmp_path, 4, 2, batch=3)
    assert config(tmp_path, 4, 4, batch=3).context == 4
