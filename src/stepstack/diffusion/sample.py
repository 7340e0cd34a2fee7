"""Sampling from noise to latents by a DiT with classifier-free guidance.

Both branches see the same first frame and motion score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from stepstack.diffusion import flow
from stepstack.diffusion.config import SamplerConfig
from stepstack.models.video.prompt_encoders import Encoded


def noise_like(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Noise [len(seeds), *shape], where each video has its own seed and depends on no other of its batch."""
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def sample(
    dit: nn.Module,
    noise_BFCYX: Tensor,
    text: Encoded,
    without: Encoded,
    cfg: SamplerConfig,
    *,
    image_BCYX: Tensor | None = None,
    motion_B: Tensor | None = None,
) -> Iterator[Tensor]:
    """Latents after each step. ``without``: encoding of the negative prompt, one row for all.

    FloatingPointError for NaN or infinite latents.
    """
    more = {} if image_BCYX is None else {"image_BFCYX": pad_first_frame(image_BCYX, noise_BFCYX.shape[1])}
    more |= {} if motion_B is None else {"motion_B": motion_B}

    def velocity(words: Encoded, x: Tensor, t_B: Tensor) -> Tensor:
        return dit(
            x,
            t_B,
            words.text_BLC.expand(len(x), -1, -1),
            words.mask_BL.expand(len(x), -1),
            words.clip_BMC.expand(len(x), -1, -1),
            **more,
        )

    for x in flow.euler(noise_BFCYX, cfg, lambda x, t: velocity(text, x, t), lambda x, t: velocity(without, x, t)):
        if not torch.isfinite(x).all():
            raise FloatingPointError("sampling met NaN or infinite latents: check the weights and the conditions")
        yield x


def pad_first_frame(image_BCYX: Tensor, frames: int) -> Tensor:
    """Latent of the first frame, and zeros for the other frames."""
    image_BFCYX = image_BCYX.new_zeros(len(image_BCYX), frames, *image_BCYX.shape[1:])
    image_BFCYX[:, 0] = image_BCYX
    return image_BFCYX


def derive_seed(*parts: object) -> int:
    """Seed derived from a hash of the parts, which differs for other parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
