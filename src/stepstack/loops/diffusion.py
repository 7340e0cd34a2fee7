"""Flow matching on prepared latents, and Video-DPO on pairs of them (Step-Video, arXiv 2502.10248 §4.3, §8).

What a step sees is a pure function of (seed, step), drawn sample by sample: it depends neither on the number of
processes nor on what was resumed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stepstack.core import hf
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.core.types import LossOut
from stepstack.diffusion import flow
from stepstack.diffusion.config import DiffusionConfig
from stepstack.diffusion.latents import Latents, Video
from stepstack.diffusion.sample import derive_seed, pad_first_frame
from stepstack.models.video.grid import Grid
from stepstack.models.video.prompt_encoders import Encoded
from stepstack.parallel.ulysses import context_parallel

Loss = Callable[[nn.Module, Any], LossOut]


@dataclass(frozen=True, slots=True)
class LatentMicroBatch:
    """Inputs of one forward pass, and the velocity that it is to predict. In pairs the rows of the losers stand below
    those of the winners."""

    inputs: Mapping[str, Tensor]
    target_BFCYX: Tensor
    count: int  # samples: of pairs half the rows
    context: int = 1  # processes that have it too, this one among them
    blank: bool = False

    @property
    def work(self) -> float:
        """This process's part of the tokens."""
        shape = self.target_BFCYX.shape
        return shape[0] * shape[1] * shape[3] * shape[4] / self.context


def train(
    run: Run,
    *,
    dit: Trainable,
    videos: Latents,
    cfg: DiffusionConfig,
    loss: Loss | None = None,
    after: Callable[[], Mapping[str, float]] = dict,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    share_by: Callable[[Any, int], AbstractContextManager] = context_parallel,
) -> None:
    """``loss``: ``matching``, or ``preference`` of pairs. ``after`` is called after each update, and logged.
    ``share_by`` the model and ``cfg.context``: processes share each video inside of what it returns."""
    together = share_by(hf.pretrained(dit.module), cfg.context)
    for step in run.steps(cfg.steps, evaluate):
        micros = local_batch(run, cfg, videos, step)
        with run.timer("dit"), together:
            metrics = dit.update(micros, loss or matching, cfg.batch * cfg.context)  # all who share a video count it
        tokens = sum(micro.work for micro in micros) * run.processes
        run.log(**metrics, **after(), loss=metrics[f"{dit.role}/loss"], tokens=tokens)


def local_batch(run: Run, cfg: DiffusionConfig, videos: Latents, step: int) -> list[LatentMicroBatch]:
    """This process's part of a step, noised; that of the others with which it shares videos is the same."""
    group, groups = run.rank // cfg.context, run.processes // cfg.context
    places = list(enumerate(pick(videos.buckets, cfg.batch, cfg.seed, step)))[group::groups]
    samples = [noised(cfg, videos[row], videos.empty, derive_seed(cfg.seed, step, place)) for place, row in places]
    parts = (samples[start : start + cfg.micro] for start in range(0, len(samples), cfg.micro))
    return [collate(part, run.device, cfg.context) for part in parts]


def pick(buckets: Mapping[Grid, Sequence[int]], batch: int, seed: int, step: int) -> list[int]:
    """Rows of one bucket, which is drawn by its number of rows; no row twice where there are enough."""
    rng = random.Random(f"{seed}-{step}")
    rows = rng.choices(list(buckets.values()), [len(rows) for rows in buckets.values()])[0]
    return rng.sample(rows, batch) if len(rows) >= batch else rng.choices(rows, k=batch)


@dataclass(frozen=True, slots=True)
class NoisedVideo:
    """One video at one time; a pair has two ``x`` and ``target`` at the same noise and time."""

    x: list[Tensor]
    target: list[Tensor]
    t: float
    image: Tensor
    motion: float
    text: Encoded


def noised(cfg: DiffusionConfig, video: Video, empty: Encoded, seed: int) -> NoisedVideo:
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(2, generator=generator).tolist()
    t_1 = flow.draw_times(cfg.times, 1, generator)
    noise = torch.randn(video.latents_FCYX.shape, generator=generator)
    level = math.exp(cfg.conditions.noise_mean + cfg.conditions.noise_std * float(torch.randn(1, generator=generator)))
    image = video.image_CYX.float() + level * torch.randn(video.image_CYX.shape, generator=generator)
    if chance[1] < cfg.conditions.drop_image:
        image = torch.zeros_like(image)
    both = [video.latents_FCYX] if video.loser_FCYX is None else [video.latents_FCYX, video.loser_FCYX]
    x = [flow.interpolate(data[None].float(), noise[None], t_1)[0] for data in both]
    target = [flow.velocity(data.float(), noise) for data in both]
    return NoisedVideo(
        x, target, float(t_1), image, video.motion, empty if chance[0] < cfg.conditions.drop_text else video.text
    )


def collate(videos: Sequence[NoisedVideo], device: torch.device, context: int) -> LatentMicroBatch:
    sides = len(videos[0].x)
    rows = [(video, side) for side in range(sides) for video in videos]
    x = torch.stack([video.x[side] for video, side in rows])
    inputs = {
        "latents_BFCYX": x,
        "time_B": torch.tensor([video.t for video, _ in rows]),
        "text_BLC": torch.cat([video.text.text_BLC for video, _ in rows]).float(),
        "text_mask_BL": torch.cat([video.text.mask_BL for video, _ in rows]),
        "clip_BMC": torch.cat([video.text.clip_BMC for video, _ in rows]).float(),
        "image_BFCYX": pad_first_frame(torch.stack([video.image for video, _ in rows]), x.shape[1]),
        "motion_B": torch.tensor([video.motion for video, _ in rows]),
    }
    target = torch.stack([video.target[side] for video, side in rows])
    return LatentMicroBatch(
        {name: value.to(device) for name, value in inputs.items()}, target.to(device), len(videos), context
    )


def matching(module: nn.Module, micro: LatentMicroBatch) -> LossOut:
    """Squared error of the velocity, summed over videos."""
    total = flow.squared_error(module(**micro.inputs), micro.target_BFCYX)
    return LossOut(total=total, count=micro.count, work=micro.work)


def preference(reference: nn.Module, beta: float) -> Loss:
    """Video-DPO: the winner's error is to fall, against the reference model's, more than the loser's. The reference is
    computed whole on every process, also where others share the video."""

    def loss(module: nn.Module, micro: LatentMicroBatch) -> LossOut:
        win_B, lose_B = _errors(module, micro).chunk(2)
        with torch.no_grad():
            reference_win_B, reference_lose_B = _errors(reference, micro).chunk(2)
        total, right = flow.preference_loss(win_B, lose_B, reference_win_B, reference_lose_B, beta)
        metrics = {"right": right, "winner_error": win_B.detach().sum()}
        return LossOut(total=total, count=micro.count, work=micro.work, metrics=metrics)

    return loss


def _errors(module: nn.Module, micro: LatentMicroBatch) -> Tensor:
    return (module(**micro.inputs).float() - micro.target_BFCYX).square().flatten(1).mean(1)
