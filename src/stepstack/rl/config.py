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
class DynamicSampling(Strict):
    """DAPO's dynamic sampling: further prompts in place of those whose rollouts all have one score."""

    max_batches: Annotated[int, Field(ge=2, le=1000)] = 4
    """Most batches of ``rollout.prompts`` prompts that a step samples. Where they hold too few groups whose scores
    differ, other groups fill the step's batch. So many prompts of an epoch belong to a step; it leaves out those that
    it does not need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReward(Strict):
    """A reward model: a sequence classifier of transformers with one output, whose value is the reward."""

    type: Literal["model"] = "model"
    """Choice of the reward: a reward model."""
    path: Text
    """Hub name or local folder of the model and its tokenizer."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null takes the default branch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the model computes in."""
    text: Text | None = None
    """Text that the model reads, in which {question} and {response} stand for the two; null: both as turns of the
    model's own chat template."""
    batch: PositiveInt = 16
    """Answers that are scored at a time."""

    def __post_init__(self) -> None:
        if self.text is not None and "{response}" not in self.text:
            raise ValueError("reward.text must hold {response}, in whose place the response is put: add it")

    @property
    def reads(self) -> tuple[str, ...]:
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
    dynamic_sampling: DynamicSampling | None = None
    """Sampling until all groups of the batch have scores that differ, for grpo and rloo; null: one batch of prompts,
    whatever their scores."""

    @property
    def max_batches(self) -> int:
        """Most batches of prompts that a step samples."""
        return 1 if self.dynamic_sampling is None else self.dynamic_sampling.max_batches


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ReinforcePlusPlus(Strict):
    """REINFORCE++: the discounted reward, without critic or group. Its variant with a baseline is ``{type: grpo, scale:
    none, whiten: true}``."""

    type: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    """Choice of the advantage: REINFORCE++, the reward itself."""
    gamma: Fraction = 1.0
    """Discount of a reward for each token that it comes later."""
    whiten: bool = True
    """Whether advantages of a step get mean 0 and deviation 1 over all processes."""
    bf16: bool = False
    """Whether whitened advantages are rounded to bfloat16, as ORZ's code does (orz-parity)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remax(Strict):
    """ReMax: reward minus that of the greedy response to the same prompt, which a step samples besides."""

    type: Literal["remax"] = "remax"
    """Choice of the advantage: relative to the greedy response."""
    whiten: bool = False
    """Whether advantages of a step get mean 0 and deviation 1 over all processes."""
    bf16: bool = False
    """Whether whitened advantages are rounded to bfloat16, as ORZ's code does (orz-parity)."""


Ratio = Literal["token", "sequence", "sequence-token"]
Aggregate = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "pack-mean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLoss(Strict):
    """PPO's clipped surrogate, and its variants GSPO and CISPO."""

    surrogate: Literal["clip", "cispo"] = "clip"
    """Loss of a token: clip is PPO's, cispo the log-probability weighed by the advantage and the clipped ratio, which
    no clip robs of its gradient."""
    ratio: Ratio = "token"
    """Ratio of new to old probability: of each token, of the sequence (GSPO: the geometric mean over a response, whose
    clips are about 3e-4), or sequence-token (GSPO-token: that value with the gradient of the token)."""
    clip_low: Fraction = 0.2
    """Distance below 1 at which the ratio of probabilities is clipped; 1: not at all, as CISPO has it."""
    clip_high: Weight = 0.2
    """Distance above 1 at which the ratio of probabilities is clipped; above ``clip_low`` it is clip-higher (DAPO)."""
    dual_clip: Annotated[float, Field(gt=1, le=1e6)] | None = None
    """Bound c of dual-clip PPO, by which the loss of a negative advantage A is at most -c A; null: no bound."""
    is_cap: Magnitude | None = None
    """Cap of truncated importance sampling (TIS), which weighs tokens by min(cap, trainer / sampler probability);
    null: no weights."""
    old_from_sampler: Magnitude | None = None
    """Largest difference of a token's log-probability between trainer and sampler, measured in each step on one
    micro-batch, up to which a step's updates after the first take the sampler's for old ones, which spares a forward
    pass of their rows. Beyond it these are computed, and actor/old_from_sampler is 0. Null: always computed."""
    aggregate: Aggregate = "token-mean"
    """Mean over tokens: token-mean (ours, global), seq-mean-token-mean (GRPO), seq-mean-token-sum,
    seq-mean-token-sum-norm (Dr. GRPO: divides by max_tokens), pack-mean (orz-parity: mean over packs of each pack's
    token mean)."""

    def __post_init__(self) -> None:
        if self.surrogate == "cispo" and self.dual_clip is not None:
            raise ValueError("dual_clip bounds the loss of surrogate=clip, and cispo clips the ratio: set it to null")
        if self.surrogate == "cispo" and self.ratio == "sequence-token":
            raise ValueError(
                "surrogate=cispo takes no gradient of the ratio, so that ratio=sequence is the same: set it"
            )


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
    advantage: Annotated[Gae | Grpo | Rloo | ReinforcePlusPlus | Remax, Field(discriminator="type")] = Gae()
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
        if isinstance(self.advantage, Grpo | Rloo) and self.rollout.sampling.n < 2:
            raise ValueError("a group-relative advantage needs rollout.sampling.n of at least 2: raise it")
        if self.rollout.dynamic_sampling is not None and not isinstance(self.advantage, Grpo | Rloo):
            raise ValueError(
                f"rollout.dynamic_sampling leaves out groups of equal scores, from which advantage.type="
                f"{self.advantage.type} learns: set it to null, or take grpo or rloo"
            )
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
        if self.kl.weight > 0 and self.kl.place == "reward" and isinstance(self.advantage, Grpo | Rloo | Remax):
            raise ValueError(
                "kl.place=reward is a penalty token by token, which needs advantage.type=gae or reinforce_plus_plus: "
                "use kl.place=loss"
            )
        if self.policy_loss.old_from_sampler is not None and (self.actor_updates == 1 or self.kl.place == "reward"):
            raise ValueError(
                "policy_loss.old_from_sampler spares the forward pass for old log-probabilities, which actor_updates=1 "
                "does not have and kl.place=reward needs: set it to null"
            )
        if self.layout.share_prompts and self.layout.orz_parity:
            raise ValueError(
                "layout.orz_parity packs rollouts in the order of their arrival: set layout.share_prompts to false"
            )
        if self.stream is not None:
            self._check_stream(self.stream)

    def _check_stream(self, stream: StreamConfig) -> None:
        """ValueError for what cannot be streamed, or is biased where rollouts are older than the policy."""
        if stream.staleness and self.policy_loss.is_cap is None and not stream.uncorrected:
            raise ValueError(
                "stream.staleness=1 trains on rollouts of an older policy: set policy_loss.is_cap, such as 2, which "
                "weighs tokens by their importance, or stream.uncorrected=true"
            )
        if stream.staleness and self.policy_loss.old_from_sampler is not None:
            raise ValueError(
                "policy_loss.old_from_sampler takes the sampler for the policy before its update, which it is not with "
                "stream.staleness=1: set it to null"
            )
        if self.rollout.dynamic_sampling is not None:
            raise ValueError(
                "rollout.dynamic_sampling asks for further prompts once scores are known, and a stream hands out those "
                "of a step before: set one of them to null"
            )
        if self.uses_greedy:
            raise ValueError(
                "advantage.type=remax needs a greedy response besides, which workers do not sample: set stream to null"
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
    def algorithm(self) -> str:
        """Name of what is trained by, as papers have it."""
        names = {"gae": "PPO", "grpo": "GRPO", "rloo": "RLOO", "reinforce_plus_plus": "REINFORCE++", "remax": "ReMax"}
        return names[self.advantage.type]

    @property
    def uses_critic(self) -> bool:
        return isinstance(self.advantage, Gae)

    @property
    def uses_greedy(self) -> bool:
        """Whether a step also samples a greedy response to each prompt."""
        return isinstance(self.advantage, Remax)

    @property
    def skips_zero_advantages(self) -> bool:
        """Whether rollouts of advantage 0 are left out of the policy's forward passes: the gradient of their loss is 0.
        Not where another term of the loss weighs on them, or where the loss depends on which rows come together;
        advantages that are whitened or token by token are hardly ever 0."""
        return not (
            isinstance(self.advantage, Gae | ReinforcePlusPlus)
            or self.advantage.whiten
            or self.kl.weight
            or self.entropy_weight
            or self.layout.orz_parity
            or self.policy_loss.aggregate == "pack-mean"
        )

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
