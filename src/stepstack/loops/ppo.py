"""PPO, in verbs. GRPO, RLOO and Dr. GRPO are this same loop without the critic.

prompts --generate--> groups --score--> batch --annotate--> values, logprobs --credit--> advantages
   ^                                                                                        |
   +---- generator.load(weights) <---- actor.update <---- critic.update <-------------------+
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from stepstack.config import RunConfig
from stepstack.core.minibatch import Minibatch, minibatches
from stepstack.core.optim import TrainableConfig
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.rl.advantage import Gae, Grpo, Rloo, explained_variance, gae, group_relative, whiten
from stepstack.rl.batch import Batch, Layout, Micro
from stepstack.rl.experience import collect
from stepstack.rl.loss import (
    Kl,
    LossOut,
    PolicyLoss,
    ValueLoss,
    denominator,
    kl_estimate,
    surrogate,
    token_weights,
    truncated_importance,
    value_error,
)  # fmt: skip
from stepstack.rl.prompts import Prompts
from stepstack.rl.rollout import RolloutConfig
from stepstack.rl.types import Generator, Reward, row_seed


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
    layout: Layout = Layout()

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


def train(
    run: Run[Any], *, actor: Trainable, critic: Trainable | None, reference: nn.Module | None,
    generator: Generator, prompts: Prompts, reward: Reward, evaluate: Callable[[], Mapping[str, float]],
) -> None:  # fmt: skip
    """Every rollout of a step is sampled by the policy that the step then updates: on-policy."""
    cfg = run.config
    run.refuse_dropout("would make log-probabilities and values of training and rollout differ")
    generator.load(actor.named_weights(), version=run.resume())
    for step in run.steps(cfg.steps, evaluate):
        with run.timer("rollout"):
            mine = prompts.take(step, cfg.rollout.prompts)[run.rank :: run.processes]
            groups = list(generator.generate(mine, cfg.rollout.sampling.but(seed=row_seed(cfg.seed, step, 0))))
            generator.sleep()
        with run.timer("reward"):
            chunks = cfg.critic_updates if critic else cfg.actor_updates
            batch, metrics = collect(run, groups, reward, seed=step, chunks=chunks)
            run.log(**metrics)
        for_critic = minibatches(run, batch, cfg.critic_updates, cfg.layout) if critic else []
        for_actor = minibatches(run, batch, cfg.actor_updates, cfg.layout)
        with run.timer("annotate"):
            annotate(run, for_actor, for_critic, actor, critic, reference)
        credit(run, batch, cfg)
        if critic:
            with run.timer("critic"):
                for minibatch in for_critic:
                    run.log(**critic.update(minibatch.micros, value_loss(cfg), over(cfg.value_loss, minibatch)))
        with run.timer("actor"):
            for minibatch in for_actor:
                run.log(**actor.update(minibatch.micros, policy_loss(cfg), over(cfg.policy_loss, minibatch)))
        with run.timer("sync"):
            generator.load(actor.named_weights(), version=step + 1)


@torch.no_grad()
def annotate(run: Run, for_actor: list[Minibatch], for_critic: list[Minibatch], actor, critic, reference) -> None:
    """Per-token fields that updates need and that no update may change: value, old and ref log-probabilities.

    The first mini-batch is updated by the policy that sampled it: its old log-probabilities are those of the update
    itself, and no forward is spent on them here.
    """
    cfg = run.config
    penalty = cfg.kl.weight > 0 and cfg.kl.place == "reward"
    for micro in (m for minibatch in for_critic for m in (*minibatch.micros, *minibatch.spare)):
        with run.accelerator.autocast():
            micro.store("value", critic.module(micro.input_ids, micro.position_ids, micro.select))
    for name, module, parts in (
        ("old", actor.module, for_actor if penalty else for_actor[1:]),
        ("ref", reference, for_actor if reference is not None else []),
    ):
        for micro in (m for minibatch in parts for m in (*minibatch.micros, *minibatch.spare)):
            with run.accelerator.autocast():
                micro.store(name, forward(module, micro, cfg)[0])


def credit(run: Run, batch: Batch, cfg: PpoConfig) -> None:
    """Fill the fields advantage and return. The reward sits on the last response token."""
    lengths, kind = batch.lengths, cfg.advantage
    if isinstance(kind, Gae):
        rewards_N = torch.zeros(sum(lengths))
        rewards_N[torch.tensor(lengths).cumsum(0) - 1] = torch.tensor([row.reward for row in batch.rows])
        if cfg.kl.weight > 0 and cfg.kl.place == "reward":
            rewards_N -= cfg.kl.weight * kl_estimate(batch.field("old"), batch.field("ref"), cfg.kl.estimator)
        values_N = batch.field("value")
        advantage_N, return_N = gae(rewards_N, values_N, lengths, kind.gamma, kind.lam)
        batch.store("return", return_N)
        run.log(**{"critic/explained_variance": explained_variance(values_N, return_N, run.sum)})
    else:
        of_group = {row.group: group_relative(batch.scores[row.group], kind) for row in batch.rows}
        advantage_N = torch.cat([of_group[row.group][row.sample].expand(len(row.ids)) for row in batch.rows])
    if kind.whiten:
        advantage_N = whiten(advantage_N, run.sum)
    batch.store("advantage", advantage_N.bfloat16().float() if kind.bf16 else advantage_N)


def forward(module: nn.Module, micro: Micro, cfg: PpoConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(logprob, entropy) [N] of the distribution that was sampled from."""
    temperature = cfg.rollout.sampling.temperature
    return module(**micro.inputs(), temperature=temperature)


def policy_loss(cfg: PpoConfig) -> Callable[[nn.Module, Micro], LossOut]:
    def loss(module: nn.Module, micro: Micro) -> LossOut:
        logp_N, entropy_N = forward(module, micro, cfg)
        old_N = micro.field("old") if micro.has("old") else logp_N.detach()
        sampler_N = micro.field("sampler")
        loss_N, ratio_N, clipped_N = surrogate(logp_N, old_N, micro.field("advantage"), cfg.policy_loss)
        if cfg.policy_loss.is_cap is not None:
            loss_N = loss_N * truncated_importance(old_N, sampler_N, cfg.policy_loss.is_cap)
        if cfg.entropy_weight:
            loss_N = loss_N - cfg.entropy_weight * entropy_N
        metrics = micro.counts()
        if micro.has("ref"):
            kl_N = kl_estimate(logp_N, micro.field("ref"), cfg.kl.estimator)
            loss_N = loss_N + cfg.kl.weight * kl_N if cfg.kl.place == "loss" else loss_N
            metrics["ref_kl"] = kl_N.sum()
        weight_N = token_weights(micro.lengths, cfg.policy_loss.aggregate, cfg.rollout.sampling.max_tokens)
        mismatch_N = (old_N - sampler_N).abs()
        metrics |= {
            "entropy": entropy_N.sum(), "clip_fraction": clipped_N.sum(), "ratio_max": ratio_N.max(),
            "kl": kl_estimate(old_N, logp_N.detach(), "k3").sum(), "mismatch": mismatch_N.sum(),
            "mismatch_max": mismatch_N.max(), "mismatch_kl": kl_estimate(sampler_N, old_N, "k3").sum(),
        }  # fmt: skip
        return LossOut((loss_N * weight_N.to(loss_N.device)).sum(), metrics)

    return loss


def value_loss(cfg: PpoConfig) -> Callable[[nn.Module, Micro], LossOut]:
    def loss(module: nn.Module, micro: Micro) -> LossOut:
        value_N = module(micro.input_ids, micro.position_ids, micro.select)
        error_N = value_error(value_N, micro.field("value"), micro.field("return"), cfg.value_loss.clip)
        weight_N = token_weights(micro.lengths, cfg.value_loss.aggregate, cfg.rollout.sampling.max_tokens)
        return LossOut((error_N * weight_N.to(error_N.device)).sum(), {"value": value_N.sum(), **micro.counts()})

    return loss


def over(cfg: PolicyLoss | ValueLoss, minibatch: Minibatch) -> float:
    """What the summed loss of a mini-batch is divided by, over all processes."""
    return denominator(cfg.aggregate, tokens=minibatch.tokens, rows=minibatch.rows, packs=minibatch.packs)
