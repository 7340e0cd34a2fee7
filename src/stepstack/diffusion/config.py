"""Settings of flow matching and of the training of VAEs. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stepstack.bounds import Fraction, Magnitude, Weight
from stepstack.config import RunConfig, Strict
from stepstack.core.config import AdamW, TrainableConfig

Logarithm = Annotated[float, Field(ge=-20, le=20)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeConfig(Strict):
    """How training times are drawn; Step-Video publishes none for pre-training."""

    density: Literal["uniform", "logit_normal", "u"] = "logit_normal"
    """Density of the times: uniform; logit_normal, the sigmoid of N(``mean``, ``std``); u, proportional to
    exp(a x) + exp(-a x) at x = 2t - 1 with a = ``steepness``, as in Step-Video's distillation."""
    mean: Logarithm = 0.0
    """Mean before the sigmoid of density=logit_normal."""
    std: Magnitude = 1.0
    """Standard deviation before the sigmoid of density=logit_normal."""
    steepness: Annotated[float, Field(gt=0, le=100)] = 5.0
    """Steepness a of density=u."""
    shift: Magnitude = 1.0
    """Shift of the times towards noise, as the sampler has it; 1: none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig(Strict):
    """Euler from noise to data."""

    steps: PositiveInt = 50
    """Euler steps of a clip."""
    guidance: Annotated[float, Field(ge=0, le=1000)] = 9.0
    """Classifier-free guidance, v = v_u + guidance (v_c - v_u); 1 asks the model once a step."""
    shift: Magnitude = 13.0
    """Shift of the time grid towards noise; 1: evenly spaced times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions(Strict):
    """How conditions are made uncertain in training. The first frame's latent gets noise of deviation
    exp(N(``noise_mean``, ``noise_std``)); the paper adds it before encoding, at a level it does not publish."""

    drop_text: Fraction = 0.1
    """Share of the videos whose prompt is empty in training, which guidance needs."""
    drop_image: Fraction = 0.0
    """Share of the videos whose first frame is zeros in training."""
    noise_mean: Logarithm = -3.0
    """Mean of the logarithm of the noise's deviation on the first frame's latent."""
    noise_std: Annotated[float, Field(ge=0, le=20)] = 0.5
    """Standard deviation of the logarithm of the noise's deviation on the first frame's latent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig(RunConfig):
    """Everything of training by flow matching."""

    steps: PositiveInt = 1000
    """Training steps, one update each."""
    batch: PositiveInt = 32
    """Videos of a step over all processes, all of one bucket."""
    micro: PositiveInt = 32
    """Most videos of one forward pass of a process."""
    context: PositiveInt = 1
    """Consecutive processes that share each video's tokens between them (context parallelism); 1: none do."""
    times: TimeConfig = TimeConfig()
    """How training times are drawn."""
    conditions: Conditions = Conditions()
    """How conditions are dropped and made noisy in training."""
    dit: TrainableConfig = TrainableConfig(optim=AdamW(lr=1e-4, betas=(0.9, 0.999)), ema=0.999)
    """How the DiT is trained."""

    def __post_init__(self) -> None:
        processes = self.launch.processes
        if processes % self.context:
            raise ValueError(f"context={self.context} must divide the {processes} processes: so many share a video")
        if self.batch % (groups := processes // self.context):
            raise ValueError(
                f"batch={self.batch} must be a multiple of {groups}, processes by context: each has a share"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructionWeights(Strict):
    """Weights of the parts of a VAE's loss, per pixel in [-1, 1] and per latent."""

    squared: Weight = 4.0
    """Weight of the squared error. Without it a small form on a plain ground is worth less than its cost, and the VAE
    learns the ground alone."""
    absolute: Weight = 0.1
    """Weight of the absolute error."""
    kl: Weight = 2e-4
    """Weight of the latents' KL to a standard normal."""
    perceptual: Weight = 0.0
    """Weight of the distance of ``features``; above 0 exactly where they are given."""
    features: str = ""
    """File of ``torch.export.save`` that maps frames [N, 3, Y, X] in [-1, 1] to a list of feature maps, such as VGG's;
    an empty string: none."""

    def __post_init__(self) -> None:
        if (self.perceptual > 0) != bool(self.features):
            raise ValueError(
                f"perceptual={self.perceptual} and features={self.features!r} go together: set both, or none"
            )
