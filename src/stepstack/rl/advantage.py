"""Credit assignment: pure functions from rewards and values to per-token advantages and returns.

Per-token quantities of a batch are flat [N] tensors, responses one after another; ``lengths`` [R] cuts them. There are
no padding columns, so there is no mask to forget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from stepstack.rl.config import Grpo, Remax, Rloo

Sum = Callable[[Tensor], Tensor]  # adds a tensor over all processes


def gae(rewards_N: Tensor, values_N: Tensor, lengths: Sequence[int], gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns [N], fp32 (Schulman et al. 2016, eq. 16). The value after a response's last token is 0,
    and nothing crosses from one response to the next."""
    rewards_N, values_N = rewards_N.float(), values_N.float()
    if not lengths:
        return rewards_N, values_N
    lengths = list(lengths)
    rewards_RT, values_RT = (pad_sequence(x_N.split(lengths), batch_first=True) for x_N in (rewards_N, values_N))
    sums_RT = rewards_RT + gamma * _later(values_RT, 1) - values_RT
    # Sums of the next 1, 2, 4, ... discounted errors, of which each is two of those before it.
    ahead = 1
    while ahead < max(lengths):
        sums_RT = sums_RT + (gamma * lam) ** ahead * _later(sums_RT, ahead)
        ahead *= 2
    advantages_N = torch.cat([sums_T[:length] for sums_T, length in zip(sums_RT, lengths, strict=True)])
    return advantages_N, advantages_N + values_N


def _later(x_RT: Tensor, steps: int) -> Tensor:
    """Each row moved forward by ``steps`` places: its first ones fall out, zeros follow at its end."""
    return pad(x_RT[:, steps:], (0, steps))


def discounted_returns(rewards_N: Tensor, lengths: Sequence[int], gamma: float) -> Tensor:
    """[N], fp32: the rewards of a token and of those after it in its response, each discounted by ``gamma`` a token;
    the advantage of REINFORCE++ before it is whitened (Hu 2025, arXiv 2501.03262, eq. 5 without its KL)."""
    return gae(rewards_N, torch.zeros_like(rewards_N), lengths, gamma, 1.0)[0]


def group_relative(scores: Sequence[float], kind: Grpo | Rloo) -> Tensor:
    """Advantage of each rollout of one group, [n]. A group whose scores are all equal, or of one, gives zeros."""
    score_n = torch.tensor(scores, dtype=torch.float32)
    n = len(scores)
    centred_n = score_n - score_n.mean()
    if n < 2 or bool((score_n == score_n[0]).all()):
        return torch.zeros(n)
    match kind:
        case Rloo():
            return centred_n * (n / (n - 1))
        case Grpo(scale="none"):
            return centred_n
        case Grpo(scale="std"):
            return centred_n / (score_n.std() + kind.eps)
        case Grpo():
            return centred_n / score_n.std(correction=0)


def group_advantages(
    scores: Mapping[int, Sequence[float]], kind: Grpo | Rloo | Remax, baselines: Mapping[int, float]
) -> dict[int, Tensor]:
    """Advantages [n] of the rollouts of each group, by problem index, from their scores. ReMax takes off the score of
    the group's greedy response, one of ``baselines`` (Li et al. 2023, arXiv 2310.10505, eq. 6)."""
    if isinstance(kind, Remax):
        return {group: torch.tensor(values) - baselines[group] for group, values in scores.items()}
    return {group: group_relative(values, kind) for group, values in scores.items()}


def whiten(x_N: Tensor, total: Sum = lambda x: x) -> Tensor:
    """Zero mean and unit *population* variance over the tokens of all processes; constant input gives zeros.

    ORZ's normalisation: (x - mean) * rsqrt(max(var, 1e-8)). ``total`` adds [2]- or [1]-tensors over processes.
    """
    x_N = x_N.double()
    count, summed = total(torch.stack([torch.tensor(float(len(x_N)), dtype=torch.float64), x_N.sum()]))
    centred_N = x_N - summed / count
    variance = total((centred_N**2).sum()[None])[0] / count
    return (centred_N * variance.clamp(min=1e-8).rsqrt()).float()


def explained_variance(values_N: Tensor, returns_N: Tensor, total: Sum = lambda x: x) -> float:
    """1 - Var(returns - values) / Var(returns) over all processes; 0 when the returns do not vary."""
    v, r = values_N.double(), returns_N.double()
    e = r - v
    n, r1, r2, e1, e2 = total(
        torch.stack([torch.tensor(float(len(r))).double(), r.sum(), (r * r).sum(), e.sum(), (e * e).sum()])
    )
    var_r, var_e = r2 / n - (r1 / n) ** 2, e2 / n - (e1 / n) ** 2
    return float(1 - var_e / var_r) if var_r > 1e-12 else 0.0
