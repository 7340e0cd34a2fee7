"""Settings of optimizers and of what is trained. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from stepstack.bounds import Decay, Fraction, LearningRate, Magnitude, Weight
from stepstack.config import ConfigError, RunConfig, Scale, Strict
from stepstack.planning.steplaw import laws


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule(Strict):
    """Learning rate over the updates: linear warm-up, then a decay."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the decay after the warm-up; constant has none."""
    warmup: NonNegativeInt = 0
    """Updates of the linear warm-up."""
    final: Fraction = 0.0
    """Learning rate at the end, as a fraction of the peak; constant ignores it."""

    def factor(self, update: int, total: int) -> float:
        """Fraction of the peak learning rate for update number ``update`` (from 0) of ``total``."""
        if update < self.warmup:
            return (update + 1) / self.warmup
        progress = min(1.0, (update - self.warmup) / max(1, total - self.warmup))
        match self.kind:
            case "constant":
                return 1.0
            case "linear":
                return 1.0 + (self.final - 1.0) * progress
            case "cosine":
                return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW(Strict):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    type: Literal["adamw"] = "adamw"
    """Choice of the optimizer: AdamW."""
    lr: LearningRate = 1e-6
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the averages of the gradient and of its square."""
    eps: Fraction = 1e-8
    """Number added to the root of the second moment."""
    weight_decay: Weight = 0.0
    """Weight decay, times the learning rate at each update."""
    schedule: Schedule = Schedule()
    """Course of the learning rate."""
    lr_factors: dict[str, Magnitude] = field(default_factory=dict)
    """Factors on the learning rate of parameters whose name holds a key, such as {embed_tokens: 5.0}, which
    Step-Audio's audio embeddings have; the first key that fits counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon(Strict):
    """Muon (Jordan 2024) for hidden matrices; AdamW for embeddings, norms, biases and heads."""

    type: Literal["muon"] = "muon"
    """Choice of the optimizer: Muon."""
    lr: LearningRate = 0.02
    """Peak learning rate of the hidden matrices."""
    momentum: Decay = 0.95
    """Momentum of the hidden matrices."""
    adamw_lr: LearningRate = 3e-3
    """Peak learning rate of AdamW, which trains embeddings, norms, biases and heads."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay of the averages of the gradient and of its square."""
    weight_decay: Weight = 0.0
    """Weight decay of all weights, times their learning rate at each update."""
    schedule: Schedule = Schedule()
    """Course of both learning rates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLaw(Strict):
    """AdamW at the peak learning rate of Step Law (planning/steplaw), with the schedule of the runs it was fitted on:
    warm-up, then cosine."""

    type: Literal["steplaw"] = "steplaw"
    """Choice of the optimizer: AdamW at Step Law's learning rate."""
    params: PositiveFloat | None = None
    """Non-embedding parameters of the model; null takes them from the recipe, where it knows them."""
    tokens: PositiveFloat | None = None
    """Tokens of the training; null takes them from the recipe, where it knows them."""
    warmup: NonNegativeInt = laws.WARMUP
    """Updates of the linear warm-up."""
    final_lr: LearningRate = laws.FINAL_LR
    """Learning rate at the end of the cosine, which is no fraction of the peak."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the averages of the gradient and of its square."""
    eps: Fraction = 1e-8
    """Number added to the root of the second moment."""
    weight_decay: Weight = 0.1
    """Weight decay, times the learning rate at each update."""

    @property
    def schedule(self) -> Schedule:
        """Its shape; where it ends depends on the peak, see ``adamw``."""
        return Schedule(kind="cosine", warmup=self.warmup)

    def at(self, scale: Scale) -> tuple[float, float]:
        """(params, tokens). ConfigError where neither this config nor the recipe's ``scale`` says one."""
        params, tokens = self.params or scale.params, self.tokens or scale.tokens
        if params is None or tokens is None:
            lacking = ", ".join(f"optim.{k}=..." for k, v in (("params", params), ("tokens", tokens)) if v is None)
            raise ConfigError(f"optim.type=steplaw: the recipe does not say its scale: give {lacking}")
        return params, tokens

    def adamw(self, scale: Scale) -> AdamW:
        """The AdamW with which is trained."""
        lr = float(laws.STEP(*self.at(scale))[0])
        schedule = Schedule(kind="cosine", warmup=self.warmup, final=min(1.0, self.final_lr / lr))
        return AdamW(lr=lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, schedule=schedule)

    def derived(self, whole: RunConfig) -> dict[str, Any]:
        """The law's values at the recipe's scale, and what the law says of the batch, which no optimizer sets."""
        params, tokens = self.at(whole.scale)
        lr, batch = map(float, laws.STEP(params, tokens))
        values = {"at.params": params, "at.tokens": tokens, "lr": lr, "batch_tokens": batch}
        final = self.adamw(whole.scale).schedule.final
        return values | {"schedule.final": final, "warnings": laws.warnings(params, tokens)}


Optim = Annotated[AdamW | Muon | StepLaw, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora(Strict):
    """Low-rank adapters through peft."""

    r: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveInt = 32
    """Scale of the adapters' output, which is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance of an input of an adapter being dropped."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the linear layers that get an adapter; "all-linear": all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainableConfig(Strict):
    """How one role is trained."""

    optim: Optim = AdamW()
    """Optimizer and its learning rate."""
    clip: Magnitude | None = 1.0
    """Global norm to which gradients are clipped; null: they are not."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass instead of kept: less memory, a third more time."""
    lora: Lora | None = None
    """Low-rank adapters that are trained in place of the weights; null trains the weights."""
    ema: Decay = 0.0
    """Decay of a moving average of the weights, kept beside them and used by who asks for it
    (``Trainable.averaged``); 0: none."""
