"""Settings of optimizers and of what is trained. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from stepstack.config import ConfigError, RunConfig, Scale, Strict
from stepstack.planning.steplaw import laws


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule(Strict):
    """Linear warm-up over ``warmup`` updates, then ``kind`` down to ``final`` (a fraction of the peak) at the end."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 0
    final: float = 0.0

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
    type: Literal["adamw"] = "adamw"
    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Schedule = Schedule()


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon(Strict):
    """Muon (Jordan 2024) for hidden matrices; AdamW at ``adamw_lr`` for embeddings, norms, biases and heads."""

    type: Literal["muon"] = "muon"
    lr: float = 0.02
    momentum: float = 0.95
    adamw_lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    schedule: Schedule = Schedule()


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLaw(Strict):
    """AdamW at the peak learning rate of Step Law (planning/steplaw), with the schedule of the runs it was fitted on:
    warm-up, then cosine down to ``final_lr``, which is no fraction of the peak.

    ``params`` (non-embedding) and ``tokens``: None takes them from the recipe, where it knows them.
    """

    type: Literal["steplaw"] = "steplaw"
    params: PositiveFloat | None = None
    tokens: PositiveFloat | None = None
    warmup: int = laws.WARMUP
    final_lr: float = laws.FINAL_LR
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

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
        """What is trained with."""
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
    """Low-rank adapters through peft on every linear layer named in ``targets`` ("all-linear": all of them)."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainableConfig(Strict):
    """How one role is trained. ``clip``: global gradient norm. ``ema``: decay of a moving average of the weights, kept
    beside them and used by who asks for it (``Trainable.averaged``); 0: none."""

    optim: Optim = AdamW()
    clip: float = 1.0
    gradient_checkpointing: bool = False
    lora: Lora | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
