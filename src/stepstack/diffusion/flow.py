"""Flow matching by Step-Video's convention (arXiv 2502.10248 §4.3.1): time 0 is noise, time 1 is data.

x_t = (1 - t) noise + t data, and the model predicts the velocity data - noise. diffusers counts the other way: its
sigma is 1 - t and its models predict noise - data (``to_sigma``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from stepstack.diffusion.config import SamplerConfig, TimeConfig


def draw_times(cfg: TimeConfig, count: int, generator: torch.Generator) -> Tensor:
    """Random times in (0, 1), float32 [count] on the generator's device."""
    device = generator.device
    match cfg.density:
        case "uniform":
            t_B = torch.rand(count, generator=generator, device=device)
        case "logit_normal":
            t_B = torch.sigmoid(cfg.mean + cfg.std * torch.randn(count, generator=generator, device=device))
        case "u":  # the density's integral is a sinh
            a = torch.tensor(cfg.steepness)
            u_B = torch.rand(count, generator=generator, device=device) * 2 - 1
            t_B = (torch.asinh(u_B * torch.sinh(a)) / a + 1) / 2
    return shift_times(t_B, cfg.shift)


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise: sigma' = s sigma / (1 + (s - 1) sigma), sigma = 1 - t (Step-Video's time shift)."""
    sigma = 1 - t
    return 1 - shift * sigma / (1 + (shift - 1) * sigma)


def interpolate(data: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
    """Noisy latents x_t of a batch; ``t_B`` in [0, 1]."""
    t = _wide(t_B, data)
    return (1 - t) * noise + t * data


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """Target of the model, data - noise."""
    return data - noise


def predicted_data(x_t: Tensor, v: Tensor, t_B: Tensor) -> Tensor:
    """Data that a velocity points at."""
    return x_t + (1 - _wide(t_B, x_t)) * v


def to_sigma(t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Pair (sigma, prediction) in diffusers' convention, from ours. The function is its own inverse."""
    return 1 - t, -v


def squared_error(predicted: Tensor, target: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Sum over the batch of each sample's mean squared error, in float32. The caller divides by the global count."""
    error_B = (predicted.float() - target.float()).square().flatten(1).mean(1)
    return error_B.sum() if weight_B is None else (weight_B * error_B).sum()


def sampling_times(cfg: SamplerConfig) -> Tensor:
    """Times of a sampler from 0 to 1, float64 [steps + 1]."""
    return shift_times(torch.linspace(0, 1, cfg.steps + 1, dtype=torch.float64), cfg.shift)


def euler(
    noise: Tensor,
    cfg: SamplerConfig,
    conditional: Callable[[Tensor, Tensor], Tensor],
    unconditional: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[Tensor]:
    """Latents x after each Euler step, in float32. The models take (x, times of the batch)."""
    x = noise.float()
    times = sampling_times(cfg).tolist()
    for now, then in itertools.pairwise(times):
        t_B = torch.full((len(x),), now, device=x.device)
        v = conditional(x, t_B).float()
        if cfg.guidance != 1:
            without = unconditional(x, t_B).float()
            v = without + cfg.guidance * (v - without)
        x = x + (then - now) * v
        yield x


def _wide(t_B: Tensor, like: Tensor) -> Tensor:
    return t_B.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
