"""Settings of reinforcement learning: rollouts, advantages, losses, PPO. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stepstack.batching.config import BatchLayout
from stepstack.bounds import Fraction, Magnitude, Text, Weight
from stepstack.config import Footprint, RunConfig, Strict
from stepstack.core.config import TrainableConfig
from stepstack.generation.config import GeneratorConfig, HfConfig
from stepstack.generation.service.config import StreamConfig
from stepstack.generation.types import Sampling
from stepstack.planning.memory import FP32


@dataclass(frozen=True, kw_only=True, slots=True)
class FileReward(Strict):
    """A rule of your own: a function in a Python file (``rl.reward.load_reward`` says what it takes and returns)."""

    type: Literal["file"] = "file"
    """Choice of the reward: a rule of your own in a file."""
    path: Text
    """Python file, from where the command is typed or from the repository."""
    function: Text = "score"
    """Its function: ``score(rollouts) -> list[Score]`` or, as in TRL, ``score(completions, **columns)``."""

    @property
    def user_files(self) -> tuple[str, ...]:
        return (self.path,)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig(Strict):
    """A step samples ``prompts`` x ``sampling.n`` rollouts over all processes."""

    prompts: PositiveInt = 128
    """Prompts of a step over all processes."""
    sampling: Sampling = Sampling(n=64)
    """How responses are sampled; ``n`` of each prompt."""
    generator: Annotated[GeneratorConfig, Field(discriminator="type")] = HfConfig()
    """Engine that samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gae(Strict):
    """Generalised advantage estimation with a critic (ORZ: gamma = lam = 1)."""

    type: Literal["gae"] = "gae"
    """Choice of the advantage: GAE, with a critic."""
    gamma: Fraction = 1.0
    """Discount of a reward for each token that it comes later."""
    lam: Fraction = 1.0
    """Decay of GAE's weights: 1 trusts returns alone, 0 the critic."""
    whiten: bool = True
    """Whether advantages of a step get mean 0 and deviation 1 over all processes."""
    bf16: bool = False
    """Whether whitened advantages are rounded to bfloat16, as ORZ's code does (orz-parity)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grpo(Strict):
    """Group-relative advantage, no critic."""

    type: Literal["grpo"] = "grpo"
    """Choice of the advantage: relative to the group of a prompt."""
    scale: Literal["std", "population", "none"] = "std"
    """Divisor of the rewards' distance from the group's mean: their sample or population deviation, or none (Dr.
    GRPO's estimator, and what ORZ's GRPO script computes, whose std is a bool by operator precedence)."""
    eps: Fraction = 1e-4
    """Number added to the deviation."""
    whiten: bool = False
    """Whether advantages of a step get mean 0 and deviation 1 over all processes."""
    bf16: bool = False
    """Whether whitened advantages are rounded to bfloat16, as ORZ's code does (orz-parity)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rloo(Strict):
    """REINFORCE leave-one-out: reward minus the mean of the group's other rewards."""

    type: Literal["rloo"] = "rloo"
    """Choice of the advantage: leave-one-out."""
    whiten: bool = False
    """Whether advantages of a step get mean 0 and deviation 1 over all processes."""
    bf16: bool = False
    """Whether whitened advantages are rounded to bfloat16, as ORZ's code does (orz-parity)."""


Aggregate = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "pack-mean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLoss(Strict):
    """PPO's clipped surrogate."""

    clip_low: Fraction = 0.2
    """Distance below 1 at which the ratio of probabilities is clipped."""
    clip_high: Weight = 0.2
    """Distance above 1 at which the ratio of probabilities is clipped; above ``clip_low`` it is clip-higher (DAPO)."""
    dual_clip: Annotated[float, Field(gt=1, le=1e6)] | None = None
    """Bound c of dual-clip PPO, by which the loss of a negative advantage A is at most -c A; null: no bound."""
    is_cap: Magnitude | None = None
    """Cap of truncated importance sampling (TIS), which weighs tokens by min(cap, trainer / sampler probability);
    null: no weights."""
    aggregate: Aggregate = "token-mean"
    """Mean over tokens: token-mean (ours, global), seq-mean-token-mean (GRPO), seq-mean-token-sum,
    seq-mean-token-sum-norm (Dr. GRPO: divides by max_tokens), pack-mean (orz-parity: mean over packs of each pack's
    token mean)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueLoss(Strict):
    """The critic's regression."""

    clip: Magnitude | None = 0.2
    """Most that a value may move from the one it had when the rollout was made; null: as far as it likes."""
    aggregate: Aggregate = "token-mean"
    """Mean over tokens, as in ``policy_loss.aggregate``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kl(Strict):
    """KL to the reference model."""

    weight: Weight = 0.0
    """Weight of the KL to the reference model, which is not loaded while this is 0."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL from the sampled tokens (Schulman)."""
    place: Literal["loss", "reward"] = "loss"
    """Where the KL goes: a term of the loss, or a penalty taken off the reward token by token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PpoConfig(RunConfig):
    """Everything PPO. The critic exists only where advantage.type is gae, the reference only where kl.weight > 0."""

    steps: PositiveInt
    """Training steps: each samples rollouts, scores them and updates the models."""
    rollout: RolloutConfig = RolloutConfig()
    """Prompts and samples of a step, and the engine."""
    advantage: Annotated[Gae | Grpo | Rloo, Field(discriminator="type")] = Gae()
    """How rewards become advantages; gae alone has a critic."""
    actor: TrainableConfig = TrainableConfig()
    """How the policy is trained."""
    actor_updates: PositiveInt = 1
    """Optimizer updates of the policy in a step, each on an equal part of the rollouts."""
    critic: TrainableConfig = TrainableConfig()
    """How the critic is trained, where there is one."""
    critic_updates: PositiveInt = 12
    """Optimizer updates of the critic in a step, each on an equal part of the rollouts."""
    policy_loss: PolicyLoss = PolicyLoss()
    """Loss of the policy."""
    value_loss: ValueLoss = ValueLoss()
    """Loss of the critic."""
    entropy_weight: Weight = 0.0
    """Weight of the policy's entropy, which is taken off the loss; 0: it is only logged."""
    kl: Kl = Kl()
    """KL to the reference model, which is the policy before training."""
    layout: BatchLayout = BatchLayout()
    """How rollouts become micro-batches."""
    stream: StreamConfig | None = None
    """Worker processes that sample, streamed to the trainer; null: the training processes sample themselves."""

    def __post_init__(self) -> None:
        most = max(self.actor_updates, self.critic_updates if self.uses_critic else 1)
        if self.rollouts_per_step < most:
            raise ValueError(
                f"{most} updates a step need at least as many rollouts, not {self.rollouts_per_step}: raise "
                "rollout.prompts or rollout.sampling.n"
            )
        if not self.uses_critic and self.rollout.sampling.n < 2:
            raise ValueError("a group-relative advantage needs rollout.sampling.n of at least 2: raise it")
        if self.rollout.sampling.temperature <= 0 or self.rollout.sampling.cuts:
            raise ValueError("rollouts are samples of the policy itself: set temperature above 0, top_p 1, top_k -1")
        means = self.policy_loss.aggregate, self.value_loss.aggregate
        if self.rollout.sampling.repetition is not None:
            raise ValueError(
                "rollout.sampling.repetition forbids tokens that the trainer's distribution has: it is for evaluations "
                "and for engines whose samples are learned by likelihood: set it to null"
            )
        if not self.layout.pack and (self.layout.orz_parity or "pack-mean" in means):
            raise ValueError("layout.orz_parity and aggregate=pack-mean are about packs: set layout.pack=true")
        if self.kl.weight > 0 and self.kl.place == "reward" and not self.uses_critic:
            raise ValueError(
                "kl.place=reward is a penalty token by token, which needs advantage.type=gae: use kl.place=loss"
            )
        if self.layout.share_prompts:
            raise ValueError("layout.share_prompts is about preference pairs, not about rollouts: set it to false")
        if self.stream is not None:
            self._check_stream(self.stream)

    def _check_stream(self, stream: StreamConfig) -> None:
        """ValueError for what cannot be streamed, or is biased where rollouts are older than the policy."""
        if stream.staleness and self.policy_loss.is_cap is None and not stream.uncorrected:
            raise ValueError(
                "stream.staleness=1 trains on rollouts of an older policy: set policy_loss.is_cap, such as 2, which "
                "weighs tokens by their importance, or stream.uncorrected=true"
            )
        if stream.consume == "batch":
            return
        updates = self.actor_updates, self.critic_updates if self.uses_critic else 1
        means = self.policy_loss.aggregate, self.value_loss.aggregate
        for wrong, why in (
            (self.advantage.whiten, "advantage.whiten needs the advantages of the whole step: set it to false"),
            (max(updates) > 1, "several updates a step need the whole step: set actor_updates and critic_updates to 1"),
            ("pack-mean" in means, "aggregate=pack-mean depends on which rows come together: take token-mean"),
            (self.layout.orz_parity, "layout.orz_parity drops packs of the whole step: set it to false"),
        ):
            if wrong:
                raise ValueError(f"stream.consume={stream.consume} trains on what arrives, and {why}, or consume=batch")

    @property
    def rollouts_per_step(self) -> int:
        return self.rollout.prompts * self.rollout.sampling.n

    @property
    def updates(self) -> int:
        """Parts of a step's rollouts that have about the same tokens on every process."""
        return self.critic_updates if self.uses_critic else self.actor_updates

    @property
    def uses_critic(self) -> bool:
        return isinstance(self.advantage, Gae)

    def footprint_of(self, size: int, width: int, shards: int) -> Footprint:
        """Footprint with models of ``size`` parameters of ``width`` bytes in their folder: actor and critic with
        gradients and two moments, all float32 as whatever learns, or under adapters as weights alone, and the
        reference. Activations and the engine come on top."""
        roles = [self.actor, self.critic] if self.uses_critic else [self.actor]
        whole = sum(role.lora is None for role in roles)
        copies = len(roles) + (self.kl.weight > 0)
        return Footprint(
            states=size * (FP32 * 4 * whole + width * (copies - whole)) // shards,
            activations=0,
            checkpoint=FP32 * size * 3 * whole,
            host=width * size * copies,
        )
