"""Settings of flow matching and of the training of VAEs. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from stepstack.config import Fraction, RunConfig, Strict
from stepstack.core.config import AdamW, TrainableConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeConfig(Strict):
    """How training times are drawn; Step-Video publishes none for pre-training. logit_normal: sigmoid of N(``mean``,
    ``std``). u: density proportional to exp(a x) + exp(-a x) at x = 2t - 1, its distillation's, a = ``steepness``.
    ``shift``: as of the sampler, towards noise."""

    density: Literal["uniform", "logit_normal", "u"] = "logit_normal"
    mean: float = 0.0
    std: PositiveFloat = 1.0
    steepness: PositiveFloat = 5.0
    shift: PositiveFloat = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig(Strict):
    """Euler from noise to data. ``guidance``: v = v_u + guidance (v_c - v_u); 1 asks the model once a step."""

    steps: PositiveInt = 50
    guidance: float = 9.0
    shift: PositiveFloat = 13.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions(Strict):
    """How conditions are made uncertain in training. ``drop_text``, ``drop_image``: how often the prompt is empty (what
    guidance needs) and the first frame zeros. The first frame's latent gets noise of deviation exp(N(``noise_mean``,
    ``noise_std``)); the paper adds it before encoding, at a level it does not publish."""

    drop_text: Fraction = 0.1
    drop_image: Fraction = 0.0
    noise_mean: float = -3.0
    noise_std: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig(RunConfig):
    """``batch``: videos a step, over all processes, all of one bucket; ``micro``: of a forward pass. ``context``: so
    many processes, consecutive ones, share each video's tokens between them (context parallelism)."""

    steps: PositiveInt = 1000
    batch: PositiveInt = 32
    micro: PositiveInt = 32
    context: PositiveInt = 1
    times: TimeConfig = TimeConfig()
    conditions: Conditions = Conditions()
    dit: TrainableConfig = TrainableConfig(optim=AdamW(lr=1e-4, betas=(0.9, 0.999)), ema=0.999)

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
    """Of the loss, per pixel in [-1, 1] and per latent. Without ``squared`` a small form on a plain ground is worth
    less than its cost, and the VAE learns the ground alone. ``perceptual``: of the distance of ``features``, a file of
    ``torch.export.save``: frames [N, 3, H, W] in [-1, 1] to a list of feature maps, VGG's for instance."""

    squared: float = 4.0
    absolute: float = 0.1
    kl: float = 2e-4
    perceptual: float = 0.0
    features: str = ""

    def __post_init__(self) -> None:
        if (self.perceptual > 0) != bool(self.features):
            raise ValueError(
                f"perceptual={self.perceptual} and features={self.features!r} go together: set both, or none"
            )
