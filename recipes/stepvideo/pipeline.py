"""Image, prompt and motion score to a clip: what sampling, validation and evaluation share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recipes.stepvideo.models import as_video, frames
from stepstack.diffusion.flow import SamplerConfig
from stepstack.diffusion.sample import noise_like, sample
from stepstack.models.prompt_encoders import Encoded, PromptEncoder
from stepstack.models.video_vae import VideoCodec


@dataclass(frozen=True, slots=True)
class Ask:
    """``image``: the first frame [H, W, RGB], uint8. ``seed``: of the noise."""

    prompt: str
    image: NDArray[np.uint8]
    motion: float
    seed: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """``negative``: the prompt that guidance moves away from. ``count``: frames of a clip."""

    dit: nn.Module
    codec: VideoCodec
    encoder: PromptEncoder
    sampler: SamplerConfig
    count: int
    negative: str = ""
    device: torch.device = torch.device("cpu")

    def clips(self, asks: Sequence[Ask]) -> NDArray[np.uint8]:
        """[B, F, H, W, RGB] of asks whose images have one size."""
        *_, latents = self.steps(asks)
        return frames(self.codec.decode(latents))

    def steps(self, asks: Sequence[Ask]) -> Iterator[torch.Tensor]:
        """The latents after each step of the sampler. ValueError for an image that the codec cannot encode."""
        images = as_video(np.stack([ask.image for ask in asks])[:, None]).to(self.device)
        grid = self.codec.grid(self.count, *images.shape[3:])
        noise = noise_like((grid[0], self.codec.channels, *grid[1:]), [ask.seed for ask in asks]).to(self.device)
        motion = torch.tensor([ask.motion for ask in asks]).to(self.device)
        words, without = self._encoded([ask.prompt for ask in asks]), self._encoded([self.negative])
        image = self.codec.encode(images)[:, 0]
        yield from sample(self.dit, noise, words, without, self.sampler, image_BCHW=image, motion_B=motion)

    def _encoded(self, prompts: list[str]) -> Encoded:
        made = self.encoder.encode(prompts)
        return Encoded(*(x.to(self.device) for x in (made.text_BLT, made.mask_BL, made.clip_BMT)))
