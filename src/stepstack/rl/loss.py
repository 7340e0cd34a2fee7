"""Losses as pure functions of flat per-token tensors [N]. Each returns per-token values; the caller weighs and sums.

``LossOut.total`` is a SUM; whoever updates divides it by the GLOBAL denominator, so that the result depends neither on
micro-batches nor on packing nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepstack.rl.config import Aggregate, PolicyLoss, Ratio

LARGEST_LOG_RATIO = 80.0  # exp overflows float32 from 88.7 on, and an advantage of 0 times infinity is no number


def log_ratio(logp_N: Tensor, old_N: Tensor, lengths: Sequence[int], level: Ratio) -> Tensor:
    """[N] log of the ratio of new to old probability: of each token, or the mean over its response's tokens (GSPO,
    Zheng et al. 2025, arXiv 2507.18071, eq. 7). ``sequence-token`` has the value of that mean and the gradient of the
    token's own log-probability (eq. 14)."""
    ratio_N = logp_N - old_N
    if level == "token":
        return ratio_N
    count_R = torch.tensor(lengths, device=ratio_N.device)
    mean_N = torch.stack([part.mean() for part in ratio_N.split(list(lengths))]).repeat_interleave(count_R)
    return mean_N if level == "sequence" else mean_N.detach() + logp_N - logp_N.detach()


def surrogate(
    logp_N: Tensor, old_N: Tensor, advantage_N: Tensor, lengths: Sequence[int], cfg: PolicyLoss
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, ratio, clipped) [N]: -min(r A, clip(r) A) with the ratio r of ``cfg.ratio`` (PPO eq. 7), or CISPO's
    -clip(r) A logp, whose clip(r) is a number without gradient (MiniMax-M1, arXiv 2506.13585, eq. 4). ``clipped`` is 1
    where the clip decided. A log-ratio beyond 80 counts as 80 and has no gradient (verl bounds it at 20)."""
    ratio_N = log_ratio(logp_N, old_N, lengths, cfg.ratio).clamp(max=LARGEST_LOG_RATIO).exp()
    bounded_N = ratio_N.clamp(1 - cfg.clip_low, 1 + cfg.clip_high)
    if cfg.surrogate == "cispo":
        return -bounded_N.detach() * advantage_N * logp_N, ratio_N.detach(), (bounded_N != ratio_N).float()
    free_N = -advantage_N * ratio_N
    held_N = -advantage_N * bounded_N
    loss_N = torch.maximum(free_N, held_N)
    clipped_N = (held_N > free_N).float()
    if cfg.dual_clip is not None:
        bound_N = -advantage_N * cfg.dual_clip
        loss_N = torch.where(advantage_N < 0, torch.minimum(loss_N, bound_N), loss_N)
    return loss_N, ratio_N.detach(), clipped_N


def value_error(value_N: Tensor, old_N: Tensor, return_N: Tensor, clip: float | None) -> Tensor:
    """[N]: half the squared error, the worse of free and clipped to old +- clip (ORZ: clip 0.2)."""
    free_N = (value_N - return_N) ** 2
    if clip is None:
        return 0.5 * free_N
    held_N = (old_N + (value_N - old_N).clamp(-clip, clip) - return_N) ** 2
    return 0.5 * torch.maximum(free_N, held_N)


def kl_estimate(logp_N: Tensor, ref_N: Tensor, estimator: str) -> Tensor:
    """[N] estimates of KL(policy || reference) from the sampled token (Schulman's k1, k2, k3)."""
    log_ratio_N = logp_N - ref_N
    match estimator:
        case "k1":
            return log_ratio_N
        case "k2":
            return 0.5 * log_ratio_N**2
        case "k3":
            return (-log_ratio_N).exp() - 1 + log_ratio_N
    raise ValueError(f"unknown KL estimator {estimator!r}: set k1, k2 or k3")


def truncated_importance(logp_N: Tensor, sampler_N: Tensor, cap: float) -> Tensor:
    """[N] min(cap, p_trainer / p_sampler): corrects for an engine whose numerics differ from the trainer's."""
    return (logp_N.detach() - sampler_N).exp().clamp(max=cap)


def token_weights(lengths: Sequence[int], aggregate: Aggregate, max_tokens: int = 0) -> Tensor:
    """[N] weight of each token in the sum; ``denominator`` gives what the sum is divided by. For pack-mean the
    lengths are those of one pack."""
    match aggregate:
        case "token-mean" | "seq-mean-token-sum":
            return torch.ones(sum(lengths))
        case "seq-mean-token-mean":
            return torch.cat([torch.full((n,), 1.0 / n) for n in lengths])
        case "seq-mean-token-sum-norm":
            return torch.full((sum(lengths),), 1.0 / max_tokens)
        case "pack-mean":
            return torch.full((sum(lengths),), 1.0 / sum(lengths))


def denominator(aggregate: Aggregate, *, tokens: float, rows: float, packs: float) -> float:
    """The global count (over all processes) that a weighted sum is divided by."""
    match aggregate:
        case "token-mean":
            return tokens
        case "pack-mean":
            return packs
        case _:
            return rows
