"""Low-rank adapters for Wan and LTX-Video as diffusers has them, on clips of one's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from recipes.videolora.config import Config
from recipes.videolora.data import held_out_batches, load_latents
from recipes.videolora.model import export_lora, pipeline_of
from recipes.videolora.report import keep_report, report_outcome, write_clips, write_report
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.diffusion.batch import LatentMicroBatch
from stepstack.diffusion.sparse import check_run, enable, loop_hooks
from stepstack.harness.engine import Engine
from stepstack.harness.task import Task
from stepstack.loops import diffusion

__all__ = ["Config", "describe", "open_engine", "prepare", "tasks", "train", "write_report"]


def train(run: Run[Config]) -> None:
    """The whole recipe: latents by the pipeline, flow matching of its transformer's adapters, clips with them."""
    cfg = run.config
    if run.sharded:
        raise ConfigError(f"launch.file={cfg.launch.file} shards the model, which was not run here: take gpu or ddp")
    keep_report(run)
    check_run(run, cfg.dsv)
    pipeline = pipeline_of(run)
    videos, held_out = load_latents(run, pipeline)
    run.reseed()
    dit = run.trainable("dit", pipeline.velocity(), cfg.dit, cfg.steps)
    dsv = enable(run, dit, cfg.dsv)
    evaluate = partial(held_out_loss, run, dit, held_out_batches(run, held_out))
    diffusion.train(run, dit=dit, videos=videos, cfg=cfg, evaluate=evaluate, **loop_hooks(dsv))
    folder = export_lora(run, dit, pipeline)
    write_clips(run, pipeline, folder)
    report_outcome(run)
    run.finish()


def held_out_loss(run: Run[Config], dit: Trainable, batches: list[LatentMicroBatch]) -> dict[str, float]:
    """Mean loss over the held-out draws, by the averaged adapters. Every process computes all of it."""
    count = sum(batch.count for batch in batches) * run.processes
    with dit.averaged():
        return {"eval/loss": dit.measure(batches, diffusion.matching, count)["dit/loss"]}


def prepare(cfg: Config) -> str:
    return "the run itself makes its latents, with the pipeline's VAE and text model: there is nothing to prepare"


def tasks(cfg: Config) -> list[Task]:
    """No tasks: clips of a caption have no gold. What is measured is the loss of held-out clips."""
    return []


def open_engine(cfg: Config, folder: Path, device: torch.device) -> Engine:
    """Raise ConfigError, because diffusers' own pipeline is what samples with the adapters."""
    raise ConfigError(
        f"recipe videolora has no engine: give {cfg.folder / 'lora'} to load_lora_weights of the model's pipeline"
    )


def describe(cfg: Config) -> dict[str, Any]:
    """Numbers that follow from those of a config, for ``--dry-run``."""
    assert cfg.dit.lora is not None
    return {
        "model": cfg.model.family,
        "clips": f"{cfg.frames} frames of {cfg.size[1]} x {cfg.size[0]}",
        "adapters": f"rank {cfg.dit.lora.r} on {cfg.dit.lora.targets}",
        "videos": f"{cfg.batch * cfg.steps} in {cfg.steps} steps of {cfg.batch}",
        "attention": "dense" if cfg.dsv is None else "DSV",
        "processes": cfg.launch.processes,
        "folder": cfg.folder,
    }
