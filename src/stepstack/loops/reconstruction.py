"""Training a video VAE to give back what it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepstack.config import ROOT, ConfigError
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.core.types import LossOut
from stepstack.diffusion.config import ReconstructionWeights


@dataclass(frozen=True, slots=True)
class VideoMicroBatch:
    video_BFCYX: Tensor
    noise_BCFYX: Tensor
    blank: bool = False


def train(
    run: Run,
    *,
    vae: Trainable,
    videos: Callable[[int], VideoMicroBatch],
    steps: int,
    batch: int,
    weights: ReconstructionWeights,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
) -> None:
    """``videos(step)`` gives this process's share of the step's ``batch`` videos; ``evaluate`` runs as ``Run.steps``
    says."""
    loss = reconstruction(weights, load_features(weights.features, run.device) if weights.features else None)
    for step in run.steps(steps, evaluate):
        with run.timer("vae"):
            metrics = vae.update([videos(step)], loss, batch)
        run.log(**metrics, loss=metrics[f"{vae.role}/loss"])


Features = Callable[[Tensor], Sequence[Tensor]]


def load_features(file: str, device: torch.device) -> Features:
    """Frozen. ConfigError where the file is not there."""
    if not (ROOT / file).is_file():
        raise ConfigError(f"weights.features={file} does not exist: torch.export.save a network of your choice there")
    return torch.export.load(ROOT / file).module().to(device).requires_grad_(False)


def reconstruction(
    weights: ReconstructionWeights, features: Features | None = None
) -> Callable[[nn.Module, VideoMicroBatch], LossOut]:
    """Squared and absolute error, the divergence from a standard normal and the distance of features, each a mean over
    a video; summed."""

    def loss(module: nn.Module, micro: VideoMicroBatch) -> LossOut:
        reconstructed, mean, logvar = module(micro.video_BFCYX, micro.noise_BCFYX)
        error = reconstructed.float() - micro.video_BFCYX
        parts = {
            "squared": error.square().flatten(1).mean(1).sum(),
            "absolute": error.abs().flatten(1).mean(1).sum(),
            "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(1).sum(),
        }
        if features is not None:
            parts["perceptual"] = perceptual_distance(features, reconstructed.float(), micro.video_BFCYX)
        total = sum(getattr(weights, name) * value for name, value in parts.items())
        metrics = {name: value.detach() for name, value in parts.items()}
        return LossOut(total=total, count=len(reconstructed), work=len(reconstructed), metrics=metrics)

    return loss


def perceptual_distance(features: Features, video_BFCYX: Tensor, true_BFCYX: Tensor) -> Tensor:
    """Sum over videos of the mean over frames: LPIPS (arXiv 1801.03924, eq. 1) with all channels weighted alike."""
    pairs = zip(features(video_BFCYX.flatten(0, 1)), features(true_BFCYX.flatten(0, 1)), strict=True)
    maps = [(F.normalize(maps_) - F.normalize(true)).square().sum(1).mean((1, 2)).sum() for maps_, true in pairs]
    return torch.stack(maps).sum() / video_BFCYX.shape[1]
