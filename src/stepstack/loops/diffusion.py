"""Flow matching on prepared latents (Step-Video, arXiv 2502.10248 §4.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from stepstack.core import hf
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.core.types import LossOut
from stepstack.diffusion import flow
from stepstack.diffusion.batch import LatentMicroBatch, local_batch
from stepstack.diffusion.config import DiffusionConfig
from stepstack.diffusion.latents import Latents
from stepstack.parallel.ulysses import context_parallel


def train(
    run: Run,
    *,
    dit: Trainable,
    videos: Latents,
    cfg: DiffusionConfig,
    after: Callable[[], Mapping[str, float]] = dict,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    share_by: Callable[[Any, int], AbstractContextManager] = context_parallel,
) -> None:
    """``after`` is called after each update, and logged. ``share_by`` the model and ``cfg.context``: processes share
    each video inside of what it returns."""
    together = share_by(hf.pretrained(dit.module), cfg.context)
    for step in run.steps(cfg.steps, evaluate):
        micros = local_batch(run, cfg, videos, step)
        with run.timer("dit"), together:
            metrics = dit.update(micros, matching, cfg.batch * cfg.context)  # all who share a video count it
        tokens = sum(micro.work for micro in micros) * run.processes
        run.log(**metrics, **after(), loss=metrics[f"{dit.role}/loss"], tokens=tokens)


def matching(module: nn.Module, micro: LatentMicroBatch) -> LossOut:
    """Squared error of the velocity, summed over videos."""
    total = flow.squared_error(module(**micro.inputs), micro.target_BFCYX)
    return LossOut(total=total, count=micro.count, work=micro.work)
