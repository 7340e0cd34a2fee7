"""Settings of reinforcement learning: rollouts, advantages, losses, PPO. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from stepstack.batching.config import BatchLayout
from stepstack.config import RunConfig, Strict
from stepstack.core.config import TrainableConfig
from stepstack.generation.config import GeneratorConfig, HfConfig
from stepstack.generation.types import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class FileReward(Strict):
    """A rule of your own: a function in a Python file (``rl.reward.load_reward`` says what it takes and returns)."""

    type: Literal["file"] = "file"
    path: str
    """Python file, from where the command is typed or from the repository."""
    function: str = "score"
    """Its function: ``score(rollouts) -> list[Score]`` or, as in TRL, ``score(completions, **columns)``."""

    @property
    def user_files(self) -> tuple[str, ...]:
        return (self.path,)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig(Strict):
    """A step samples ``prompts`` x ``sampling.n`` rollouts over all processes."""

    prompts: int = 128
    sampling: Sampling = Sampling(n=64)
    generator: Annotated[GeneratorConfig, Field(discriminator="type")] = HfConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Gae(Strict):
    """Generalised advantage estimation with a critic (ORZ: gamma = lam = 1)."""

    type: Literal["gae"] = "gae"
    gamma: float = 1.0
    lam: float = 1.0
    whiten: bool = True
    bf16: bool = False  # orz-parity: ORZ rounds whitened advantages to bfloat16


@dataclass(frozen=True, kw_only=True, slots=True)
class Grpo(Strict):
    """Group-relative advantage, no critic. ``scale``: divide by the group's std (sample or population), or not at all
    (Dr. GRPO's estimator, and what ORZ's GRPO script computes, whose std is a bool by operator precedence)."""

    type: Literal["grpo"] = "grpo"
    scale: Literal["std", "population", "none"] = "std"
    eps: float = 1e-4
    whiten: bool = False
    bf16: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Rloo(Strict):
    """REINFORCE leave-one-out: reward minus the mean of the group's other rewards."""

    type: Literal["rloo"] = "rloo"
    whiten: bool = False
    bf16: bool = False


Aggregate = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "pack-mean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLoss(Strict):
    """PPO's clipped surrogate. ``clip_high`` > ``clip_low`` is clip-higher (DAPO); ``dual_clip`` c bounds the loss of
    negative advantages by -c*A; ``is_cap`` weighs tokens by min(cap, trainer/sampler probability) (TIS).

    aggregate: token-mean (ours, global) · seq-mean-token-mean (GRPO) · seq-mean-token-sum · seq-mean-token-sum-norm
    (Dr. GRPO: divides by max_tokens) · pack-mean (orz-parity: mean over packs of each pack's token mean)."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    is_cap: float | None = None
    aggregate: Aggregate = "token-mean"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueLoss(Strict):
    """The critic's regression; ``clip`` keeps a value near the one it had when the rollout was made (null: free)."""

    clip: float | None = 0.2
    aggregate: Aggregate = "token-mean"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kl(Strict):
    """KL to the reference model. No reference is loaded while ``weight`` is 0. ``place``: a term of the loss, or a
    penalty taken off the reward token by token."""

    weight: float = 0.0
    estimator: Literal["k1", "k2", "k3"] = "k3"
    place: Literal["loss", "reward"] = "loss"


@dataclass(frozen=True, kw_only=True, slots=True)
class PpoConfig(RunConfig):
    """Everything PPO. The critic exists only where advantage.type is gae, the reference only where kl.weight > 0."""

    steps: int
    rollout: RolloutConfig = RolloutConfig()
    advantage: Annotated[Gae | Grpo | Rloo, Field(discriminator="type")] = Gae()
    actor: TrainableConfig = TrainableConfig()
    actor_updates: int = 1
    critic: TrainableConfig = TrainableConfig()
    critic_updates: int = 12
    policy_loss: PolicyLoss = PolicyLoss()
    value_loss: ValueLoss = ValueLoss()
    entropy_weight: float = 0.0
    kl: Kl = Kl()
    layout: BatchLayout = BatchLayout()

    def __post_init__(self) -> None:
        most = max(self.actor_updates, self.critic_updates if self.uses_critic else 1)
        if self.rollouts_per_step < most:
            raise ValueError(f"{most} updates a step need at least as many rollouts, not {self.rollouts_per_step}")
        if not self.uses_critic and self.rollout.sampling.n < 2:
            raise ValueError("a group-relative advantage needs rollout.sampling.n of at least 2")
        if self.rollout.sampling.temperature <= 0 or self.rollout.sampling.cuts:
            raise ValueError("rollouts are samples of the policy itself: temperature above 0, top_p 1, top_k -1")
        means = self.policy_loss.aggregate, self.value_loss.aggregate
        if not self.layout.pack and (self.layout.orz_parity or "pack-mean" in means):
            raise ValueError("layout.orz_parity and aggregate=pack-mean are about packs: set layout.pack=true")

    @property
    def rollouts_per_step(self) -> int:
        return self.rollout.prompts * self.rollout.sampling.n

    @property
    def uses_critic(self) -> bool:
        return isinstance(self.advantage, Gae)
