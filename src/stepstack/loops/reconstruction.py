"""Training a video VAE to give back what it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stepstack.config import Strict
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.rl.loss import LossOut


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights(Strict):
    """Of the loss, per pixel in [-1, 1] and per latent. Without ``squared`` a small form on a plain ground is worth
    less than its cost, and the VAE learns the ground alone."""

    squared: float = 4.0
    absolute: float = 0.1
    kl: float = 2e-4


@dataclass(frozen=True, slots=True)
class Videos:
    video_BFCHW: Tensor
    noise_BCFHW: Tensor
    blank: bool = False


def train(
    run: Run, *, vae: Trainable, videos: Callable[[int], Videos], steps: int, batch: int, weights: Weights
) -> None:
    """``videos(step)`` gives this process's share of the step's ``batch`` videos."""
    for step in run.steps(steps):
        with run.timer("vae"):
            metrics = vae.update([videos(step)], reconstruction(weights), batch)
        run.log(**metrics, loss=metrics[f"{vae.role}/loss"])


def reconstruction(weights: Weights) -> Callable[[nn.Module, Videos], LossOut]:
    """Squared and absolute error and the divergence from a standard normal, each a mean over a video; summed."""

    def loss(module: nn.Module, micro: Videos) -> LossOut:
        made, mean, logvar = module(micro.video_BFCHW, micro.noise_BCFHW)
        error = made.float() - micro.video_BFCHW
        squared = error.square().flatten(1).mean(1).sum()
        absolute = error.abs().flatten(1).mean(1).sum()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(1).sum()
        total = weights.squared * squared + weights.absolute * absolute + weights.kl * kl
        parts = {"squared": squared, "absolute": absolute, "kl": kl}
        count = torch.tensor(float(len(made)))
        return LossOut(total, {**{k: v.detach() for k, v in parts.items()}, "tokens": count})

    return loss
