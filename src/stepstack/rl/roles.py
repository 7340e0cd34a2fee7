"""The models of a PPO run, made of one: actor, critic, reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.models.lm.policy import Policy
from stepstack.models.lm.value import Value
from stepstack.rl.config import PpoConfig


@dataclass(frozen=True, slots=True)
class Roles:
    """``critic`` exists only where the advantage needs one, ``reference`` only where its divergence has a weight."""

    actor: Trainable
    critic: Trainable | None
    reference: nn.Module | None


def roles(
    run: Run[Any], cfg: PpoConfig, lm: PreTrainedModel, policy: Callable[[PreTrainedModel], nn.Module] = Policy
) -> Roles:
    """Actor, critic and reference, all beginning as ``lm``, which becomes the actor's. ``policy`` wraps a model so that
    it returns log-probabilities."""
    critic_lm = copy.deepcopy(lm) if cfg.uses_critic else None
    reference_lm = copy.deepcopy(lm) if cfg.kl.weight > 0 else None
    actor = run.trainable("actor", policy(lm), cfg.actor, cfg.steps * cfg.actor_updates)
    critic = None
    if critic_lm is not None:
        critic = run.trainable("critic", Value(critic_lm), cfg.critic, cfg.steps * cfg.critic_updates)
    return Roles(actor, critic, None if reference_lm is None else run.frozen(policy(reference_lm)))
