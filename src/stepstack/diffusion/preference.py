"""Video-DPO on flow matching (Step-Video, arXiv 2502.10248 §8): the winner's error is to fall, against that of the
model training began from, more than the loser's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stepstack.core.run import Run
from stepstack.core.types import LossOut
from stepstack.diffusion.batch import LatentMicroBatch, local_batch
from stepstack.diffusion.config import DiffusionConfig
from stepstack.diffusion.latents import Latents
from stepstack.tuning.config import PreferenceLoss
from stepstack.tuning.preference import PairScores, figures, preference_loss


@dataclass(frozen=True, slots=True)
class VideoPairs:
    """The pairs of one optimizer step: this process's micro-batches, and the number of pairs, each counted by every
    process that has a part of it."""

    micros: list[LatentMicroBatch]
    pairs: float


def video_pairs(run: Run, cfg: DiffusionConfig, videos: Latents, step: int) -> VideoPairs:
    return VideoPairs(local_batch(run, cfg, videos, step), cfg.batch * cfg.context)


def video_loss(cfg: PreferenceLoss, reference: nn.Module) -> Callable[[nn.Module, LatentMicroBatch], LossOut]:
    """Loss of pairs with the same noise and time for both sides, where a clip's error stands for its negative
    log-probability. The reference is computed whole on every process, also where others share the video."""

    def loss(module: nn.Module, micro: LatentMicroBatch) -> LossOut:
        with torch.no_grad():
            before = _scores(reference, micro)
        scores = _scores(module, micro)
        metrics = figures(cfg, scores, before)
        metrics["winner_error"], metrics["loser_error"] = -metrics.pop("chosen_logp"), -metrics.pop("rejected_logp")
        total = preference_loss(cfg, scores, before).sum()
        return LossOut(total=total, count=micro.count, work=micro.work, metrics=metrics)

    return loss


def _scores(module: nn.Module, micro: LatentMicroBatch) -> PairScores:
    error_B: Tensor = (module(**micro.inputs).float() - micro.target_BFCYX).square().flatten(1).mean(1)
    chosen_B, rejected_B = (-error_B).chunk(2)
    return PairScores(chosen_B, rejected_B, torch.ones_like(chosen_B), torch.ones_like(rejected_B))
