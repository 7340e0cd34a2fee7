"""Credit assignment: pure functions from rewards and values to per-token advantages and returns.

Per-token quantities of a batch are flat [N] tensors, responses one after another; ``lengths`` [R] cuts them. There are
no padding columns, so there is no mask to forget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stepstack.config import Strict

Sum = Callable[[Tensor], Tensor]  # adds a tensor over all processes


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


Advantage = Gae | Grpo | Rloo


def gae(rewards_N: Tensor, values_N: Tensor, lengths: Sequence[int], gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns [N], fp32 (Schulman et al. 2016, eq. 16). The value after a response's last token is 0,
    and nothing crosses from one response to the next."""
    advantages_N = torch.empty_like(rewards_N, dtype=torch.float32)
    width = max(lengths, default=0)
    # Right-aligned [R, width] so that one reversed sweep serves all responses.
    where_RT = torch.full((len(lengths), width), -1, dtype=torch.long)
    start = 0
    for row, length in enumerate(lengths):
        where_RT[row, width - length :] = torch.arange(start, start + length)
        start += length
    last_R = torch.zeros(len(lengths))
    next_value_R = torch.zeros(len(lengths))
    for t in reversed(range(width)):
        live = where_RT[:, t] >= 0
        at = where_RT[live, t]
        delta = rewards_N[at].float() + gamma * next_value_R[live] - values_N[at].float()
        last_R[live] = delta + gamma * lam * last_R[live]
        next_value_R[live] = values_N[at].float()
        advantages_N[at] = last_R[live]
    return advantages_N, advantages_N + values_N.float()


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
