"""Settings of supervised and preference tuning. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field, PositiveInt

from stepstack.bounds import Magnitude, Weight
from stepstack.config import Footprint, Strict
from stepstack.core.config import TrainableConfig

PreferenceType = Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down", "dpop", "simpo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceLoss(Strict):
    """Loss of a pair of answers, one preferred to the other. ``tuning.preference`` has the formulas."""

    type: PreferenceType = "sigmoid"
    """Form of the loss: sigmoid (DPO), ipo, hinge (SLiC), robust, apo_zero, apo_down, dpop (DPO-Positive), or simpo,
    which needs no reference."""
    beta: Magnitude = 0.1
    """Scale of the log-ratios to the reference; of ipo the regularisation (tau of its paper)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Chance of a pair being the wrong way round, which robust corrects for."""
    margin: Weight = 0.5
    """Margin by which simpo wants the winner's mean log-probability, times beta, above the loser's (its gamma)."""
    penalty: Weight = 5.0
    """Weight of dpop's penalty of a winner that became less likely than it is to the reference (its lambda)."""
    sft: Weight = 0.0
    """Weight of the winners' negative log-likelihood, a mean over all their tokens, beside the loss; RPO's alpha."""

    def __post_init__(self) -> None:
        if self.label_smoothing and self.type != "robust":
            raise ValueError(f"label_smoothing belongs to type=robust, not to {self.type}: take robust, or leave it")

    @property
    def needs_reference(self) -> bool:
        return self.type != "simpo"


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation(Strict):
    """Token-level distillation: a student learns its teacher's distribution of each token beside the token itself.
    ``tuning.distillation`` has the formulas. distil-whisper has likelihood 0.8, weight 1 and temperature 2."""

    divergence: Literal["forward", "reverse", "js"] = "forward"
    """Distance of the student's distribution from the teacher's: forward KL, reverse KL, or Jensen-Shannon."""
    weight: Weight = 1.0
    """Weight of the divergence, which is taken times the square of ``temperature``; 0: it is only logged."""
    likelihood: Weight = 1.0
    """Weight of the negative log-likelihood (cross-entropy) of the tokens themselves."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Temperature of both distributions in the divergence; above 1 unlikely tokens count for more."""

    def __post_init__(self) -> None:
        if not (self.weight or self.likelihood):
            raise ValueError("weight and likelihood are both 0, nothing would be learned: raise one of them")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(Strict):
    """A stage of tuning: how long, in which batches, and how the model is trained."""

    epochs: Magnitude | None = None
    """Passes over the data; ``steps`` may be given in its place."""
    steps: PositiveInt | None = None
    """Updates; ``epochs`` may be given in its place."""
    batch: PositiveInt = 32
    """Rows, or pairs, of an update over all processes."""
    policy: TrainableConfig = TrainableConfig()
    """How the model is trained."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a stage is as long as its epochs or its steps: give one of the two")

    def updates(self, rows: int) -> int:
        """Updates of the stage on ``rows`` rows."""
        return self.steps if self.steps is not None else max(1, math.ceil(rows * (self.epochs or 0) / self.batch))


@dataclass(frozen=True, kw_only=True, slots=True)
class SftStage(Stage):
    """Supervised fine-tuning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoStage(Stage):
    """Preference tuning on pairs of answers."""

    loss: PreferenceLoss = PreferenceLoss()
    """Loss of a pair."""
    reference: Literal["cached", "model"] = "cached"
    """Source of the start model's log-probabilities: cached, computed once and kept in the run's folder; model, the
    start model beside the policy, or the policy without its adapters."""

    @property
    def needs_copy(self) -> bool:
        """Whether the start model stands beside the policy in memory."""
        return self.loss.needs_reference and self.reference == "model" and self.policy.lora is None


class Tuned(Protocol):
    """A stage of training by its policy alone."""

    @property
    def policy(self) -> TrainableConfig: ...


def tuning_footprint(weights: int, shards: int, stages: Sequence[Tuned]) -> Footprint:
    """Footprint of the largest of ``stages`` of a model of ``weights`` bytes: with gradients and two moments, or under
    adapters as weights alone, and with a start model beside it. Activations and the engine come on top."""
    whole = any(stage.policy.lora is None for stage in stages)
    beside = any(isinstance(stage, DpoStage) and stage.needs_copy for stage in stages)
    states = weights * (1 + 3 * whole + beside) // shards
    return Footprint(states=states, activations=0, checkpoint=weights * 3 * whole, host=weights * (1 + beside))
