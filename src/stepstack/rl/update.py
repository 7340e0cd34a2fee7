"""The steps of PPO on one batch: annotate, credit, and the losses of actor and critic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from stepstack.batching.collate import TokenMicroBatch
from stepstack.batching.minibatch import Minibatch, minibatches
from stepstack.batching.rows import Batch, Row, field_of
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.core.types import LossOut
from stepstack.rl.advantage import discounted_returns, explained_variance, gae, group_advantages, whiten
from stepstack.rl.config import Gae, PolicyLoss, PpoConfig, ReinforcePlusPlus, ValueLoss
from stepstack.rl.loss import denominator, kl_estimate, surrogate, token_weights, truncated_importance, value_error
from stepstack.rl.roles import Roles


def learn(run: Run, cfg: PpoConfig, roles: Roles, batch: Batch) -> None:
    """One step's updates of critic and actor on its rollouts, scored and shared out."""
    for_actor, for_critic = prepare(run, cfg, roles, batch)
    run.log(trained_fraction=sum(minibatch.learned for minibatch in for_actor) / batch.sampled)
    if roles.critic:
        first, *later = for_critic
        with run.timer("critic"):
            run.log(**update_critic(roles.critic, first, cfg))
            credit(run, batch, cfg)
            for minibatch in later:
                run.log(**update_critic(roles.critic, minibatch, cfg))
    with run.timer("actor"):
        for minibatch in for_actor:
            run.log(**update_actor(roles.actor, minibatch, cfg))


def prepare(run: Run, cfg: PpoConfig, roles: Roles, batch: Batch) -> tuple[list[Minibatch], list[Minibatch]]:
    """Mini-batches of the actor and of the critic, whose rows have every field that updates need. With a critic
    ``credit`` is still to come: the values of its first mini-batch are those of the forward that updates it.

    Where ``cfg.skips_zero_advantages``, rows of advantage 0 belong to their mini-batch, count in its denominator and go
    through no model. The gradient is that of all rows: bit for bit where the other rows lie in the same micro-batches,
    else but for the rounding of sums. The actor's metrics are then over the rows that it is trained on.
    """
    if cfg.skips_zero_advantages:
        credit(run, batch, cfg)
        for_actor = minibatches(run, batch, cfg.actor_updates, cfg.layout, learns=_has_advantage)
        with run.timer("annotate"):
            annotate(run, cfg, roles, for_actor, [])
        return for_actor, []
    for_actor = minibatches(run, batch, cfg.actor_updates, cfg.layout)
    for_critic = minibatches(run, batch, cfg.critic_updates, cfg.layout) if roles.critic else []
    with run.timer("annotate"):
        annotate(run, cfg, roles, for_actor, for_critic)
    if roles.critic is None:
        credit(run, batch, cfg)
    return for_actor, for_critic


def _has_advantage(row: Row) -> bool:
    return bool(row.fields["advantage"].any())


@torch.no_grad()
def annotate(
    run: Run, cfg: PpoConfig, roles: Roles, for_actor: Sequence[Minibatch], for_critic: Sequence[Minibatch]
) -> None:
    """Per-token fields that updates need and that no update may change: value, old and ref log-probabilities.

    The first mini-batch of a role is updated by the weights that are asked here: its values, or old log-probabilities,
    are those of the update itself, and no forward is spent on them.
    """
    if roles.critic is not None:
        first, *later_for_critic = for_critic
        for micro in (*first.spare, *_annotated(later_for_critic)):
            with run.accelerator.autocast():
                micro.store("value", values(roles.critic.module, micro))
    penalty = cfg.kl.weight > 0 and cfg.kl.place == "reward"
    later = list(_annotated(for_actor if penalty else for_actor[1:]))
    bound = cfg.policy_loss.old_from_sampler
    trusted = bound is not None and _sampler_agrees(run, cfg, roles.actor, later[0], bound)
    for micro in later:
        with run.accelerator.autocast():
            micro.store("old", micro.field("sampler") if trusted else forward(roles.actor.module, micro, cfg)[0])
    if roles.reference is not None:
        for micro in _annotated(for_actor):
            with run.accelerator.autocast():
                micro.store("ref", forward(roles.reference, micro, cfg)[0])


def _sampler_agrees(run: Run, cfg: PpoConfig, actor: Trainable, micro: TokenMicroBatch, bound: float) -> bool:
    """Whether trainer and sampler differ by at most ``bound`` in all log-probabilities of a micro-batch, on all
    processes. It is the first one, of the longest rows, in which differences have the most tokens to grow."""
    with run.accelerator.autocast():
        logp_N = forward(actor.module, micro, cfg)[0]
    apart = 0.0 if micro.blank else (logp_N.float() - micro.field("sampler")).abs().max().item()
    largest = run.max(torch.tensor([apart])).item()
    trusted = largest <= bound
    run.log(**{"actor/old_from_sampler": float(trusted), "actor/old_mismatch_max": largest})
    return trusted


def _annotated(minibatches: Sequence[Minibatch]) -> Iterator[TokenMicroBatch]:
    """Micro-batches of the updates, and those of rows that no update sees."""
    return (micro for minibatch in minibatches for micro in (*minibatch.micros, *minibatch.spare))


def update_actor(actor: Trainable, minibatch: Minibatch, cfg: PpoConfig) -> dict[str, float]:
    """One optimizer step of the actor; its metrics."""
    return actor.update(minibatch.micros, policy_loss(cfg), loss_denominator(cfg.policy_loss, minibatch))


def update_critic(critic: Trainable, minibatch: Minibatch, cfg: PpoConfig) -> dict[str, float]:
    """One optimizer step of the critic; its metrics."""
    return critic.update(minibatch.micros, value_loss(cfg), loss_denominator(cfg.value_loss, minibatch))


def credit(run: Run, batch: Batch, cfg: PpoConfig) -> None:
    """Fill the fields advantage and return."""
    kind = cfg.advantage
    if isinstance(kind, Gae):
        values_N = batch.field("value")
        advantage_N, return_N = gae(token_rewards(batch.rows, cfg), values_N, batch.lengths, kind.gamma, kind.lam)
        batch.store("return", return_N)
        run.log(**{"critic/explained_variance": explained_variance(values_N, return_N, run.sum)})
    elif isinstance(kind, ReinforcePlusPlus):
        advantage_N = discounted_returns(token_rewards(batch.rows, cfg), batch.lengths, kind.gamma)
    else:
        of_group = group_advantages(batch.scores, kind, batch.baselines)
        advantage_N = torch.cat([of_group[row.group][row.sample].expand(len(row.learned)) for row in batch.rows])
    if kind.whiten:
        advantage_N = whiten(advantage_N, run.sum)
    batch.store("advantage", advantage_N.bfloat16().float() if kind.bf16 else advantage_N)


def token_rewards(rows: Sequence[Row], cfg: PpoConfig) -> torch.Tensor:
    """[N]: the reward of a response on its last token that is learned, less the KL penalty of each token."""
    rewards_N = torch.zeros(sum(len(row.learned) for row in rows))
    ends = torch.tensor([len(row.learned) for row in rows]).cumsum(0) - 1
    rewards_N[ends] = torch.tensor([row.reward for row in rows])
    if cfg.kl.weight > 0 and cfg.kl.place == "reward":
        rewards_N -= cfg.kl.weight * kl_estimate(field_of(rows, "old"), field_of(rows, "ref"), cfg.kl.estimator)
    return rewards_N


def forward(module: nn.Module, micro: TokenMicroBatch, cfg: PpoConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(logprob, entropy) [N] of the distribution that was sampled from."""
    temperature = cfg.rollout.sampling.temperature
    return module(**micro.inputs(), temperature=temperature)


def values(module: nn.Module, micro: TokenMicroBatch) -> torch.Tensor:
    """Value [N] of the state before each learned token."""
    return module(micro.input_ids, micro.position_ids, micro.select, micro.mask)


def policy_loss(cfg: PpoConfig) -> Callable[[nn.Module, TokenMicroBatch], LossOut]:
    def loss(module: nn.Module, micro: TokenMicroBatch) -> LossOut:
        logp_N, entropy_N = forward(module, micro, cfg)
        old_N = micro.field("old") if micro.has("old") else logp_N.detach()
        sampler_N = micro.field("sampler")
        loss_N, ratio_N, clipped_N = surrogate(logp_N, old_N, micro.field("advantage"), micro.lengths, cfg.policy_loss)
        if cfg.policy_loss.is_cap is not None:
            loss_N = loss_N * truncated_importance(old_N, sampler_N, cfg.policy_loss.is_cap)
        if cfg.entropy_weight:
            loss_N = loss_N - cfg.entropy_weight * entropy_N
        metrics = {}
        if micro.has("ref"):
            kl_N = kl_estimate(logp_N, micro.field("ref"), cfg.kl.estimator)
            loss_N = loss_N + cfg.kl.weight * kl_N if cfg.kl.place == "loss" else loss_N
            metrics["ref_kl"] = kl_N.sum()
        weight_N = token_weights(micro.lengths, cfg.policy_loss.aggregate, cfg.rollout.sampling.max_tokens)
        mismatch_N = (old_N - sampler_N).abs()
        metrics |= {
            "entropy": entropy_N.sum(),
            "clip_fraction": clipped_N.sum(),
            "ratio_max": ratio_N.max(),
            "kl": kl_estimate(old_N, logp_N.detach(), "k3").sum(),
            "mismatch": mismatch_N.sum(),
            "mismatch_max": mismatch_N.max(),
            "mismatch_kl": kl_estimate(sampler_N, old_N, "k3").sum(),
        }
        total = (loss_N * weight_N.to(loss_N.device)).sum()
        return LossOut(total=total, count=micro.count, work=micro.work, metrics=metrics)

    return loss


def returns(micro: TokenMicroBatch, values_N: torch.Tensor, cfg: PpoConfig) -> torch.Tensor:
    """[N] returns of a micro-batch by its values, which are those that ``credit`` finds for its rows."""
    assert isinstance(cfg.advantage, Gae)
    gamma, lam = cfg.advantage.gamma, cfg.advantage.lam
    return gae(token_rewards(micro.rows, cfg).to(values_N.device), values_N, micro.lengths, gamma, lam)[1]


def value_loss(cfg: PpoConfig) -> Callable[[nn.Module, TokenMicroBatch], LossOut]:
    def loss(module: nn.Module, micro: TokenMicroBatch) -> LossOut:
        value_N = values(module, micro)
        if micro.has("return"):
            old_N, return_N = micro.field("value"), micro.field("return")
        else:
            old_N = value_N.detach().float()
            return_N = returns(micro, old_N, cfg)
            micro.store("value", old_N)
        error_N = value_error(value_N, old_N, return_N, cfg.value_loss.clip)
        weight_N = token_weights(micro.lengths, cfg.value_loss.aggregate, cfg.rollout.sampling.max_tokens)
        total = (error_N * weight_N.to(error_N.device)).sum()
        return LossOut(total=total, count=micro.count, work=micro.work, metrics={"value": value_N.sum()})

    return loss


def loss_denominator(cfg: PolicyLoss | ValueLoss, minibatch: Minibatch) -> float:
    """The number that the summed loss of a mini-batch is divided by, over all processes."""
    return denominator(cfg.aggregate, tokens=minibatch.tokens, rows=minibatch.rows, packs=minibatch.packs)
