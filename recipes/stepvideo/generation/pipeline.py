"""Image, prompt and motion score to a clip: what sampling, validation and evaluation share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data.media.frames import Frames, crop_fraction, fit, nearest
from recipes.stepvideo.model import as_video, frames
from stepstack.config import ConfigError
from stepstack.diffusion.config import SamplerConfig
from stepstack.diffusion.sample import noise_like, sample
from stepstack.models.video.prompt_encoders import Encoded, PromptEncoder
from stepstack.models.video.vae import VideoCodec

FPS, FPS_OF_SHORT_CLIPS = 25, 6  # frames per second of published clips, and of clips of a few frames
MIN_KEPT_SHARE = 0.98  # share of a picture that may be cut off without asking


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """``image``: the first frame [Y, X, RGB], uint8. ``seed``: of the noise."""

    prompt: str
    image: NDArray[np.uint8]
    motion: float
    seed: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """``negative``: the prompt that guidance moves away from. ``count``: frames of a clip.
    ``fps``: frames per second at which it is shown."""

    dit: nn.Module
    codec: VideoCodec
    encoder: PromptEncoder
    sampler: SamplerConfig
    count: int
    fps: float
    negative: str = ""
    device: torch.device = torch.device("cpu")

    def clips(self, asks: Sequence[ClipRequest]) -> NDArray[np.uint8]:
        """[B, F, Y, X, RGB] of asks whose images have one size."""
        *_, latents = self.steps(asks)
        return frames(self.codec.decode(latents))

    def steps(self, asks: Sequence[ClipRequest]) -> Iterator[torch.Tensor]:
        """The latents after each step of the sampler. ValueError for an image that the codec cannot encode."""
        images = as_video(np.stack([ask.image for ask in asks])[:, None])
        grid = self.codec.grid(self.count, *images.shape[3:])
        noise = noise_like((grid[0], self.codec.channels, *grid[1:]), [ask.seed for ask in asks]).to(self.device)
        motion = torch.tensor([ask.motion for ask in asks]).to(self.device)
        words, without = self._encoded([ask.prompt for ask in asks]), self._encoded([self.negative])
        image = self.codec.encode(images)[:, 0].to(self.device)
        yield from sample(self.dit, noise, words, without, self.sampler, image_BCYX=image, motion_B=motion)

    def _encoded(self, prompts: list[str]) -> Encoded:
        """Encoded prompts in the DiT's own type: the encoders compute in text.dtype."""
        encoded = self.encoder.encode(prompts)
        dtype = next(self.dit.parameters()).dtype
        text_BLC, clip_BMC = (x.to(self.device, dtype) for x in (encoded.text_BLC, encoded.clip_BMC))
        return Encoded(text_BLC, encoded.mask_BL.to(self.device), clip_BMC)


def fitted(sizes: Sequence[tuple[int, int]], image: Frames, name: str, crop: bool) -> Frames:
    """In the nearest of the model's sizes. ConfigError for another shape, unless it may be cropped."""
    size = nearest(image.shape[:2], sizes)
    left = crop_fraction(image.shape[:2], size)
    if left < MIN_KEPT_SHARE and not crop:
        raise ConfigError(
            f"{name} is {image.shape[1]} x {image.shape[0]}: cut to {size[1]} x {size[0]}, the nearest of the model's "
            f"sizes, {left:.0%} of it would be left; allow that with --crop, or give a picture of that shape"
        )
    return fit(image[None], size)[0]


def rate(count: int) -> int:
    """Frames per second at which a drawn clip of so many frames is shown."""
    return FPS if count > 2 * FPS else FPS_OF_SHORT_CLIPS
