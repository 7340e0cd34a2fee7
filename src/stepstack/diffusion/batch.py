"""Noised latents that a step of a diffusion model sees, alone or in preference pairs.

A pure function of (seed, step), drawn sample by sample: it depends neither on the number of processes nor on what was
resumed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepstack.core.run import Run
from stepstack.diffusion import flow
from stepstack.diffusion.config import DiffusionConfig
from stepstack.diffusion.latents import Latents, Video
from stepstack.diffusion.sample import derive_seed, pad_first_frame
from stepstack.models.video.grid import Grid
from stepstack.models.video.prompt_encoders import Encoded


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
