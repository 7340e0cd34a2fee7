"""Losses of preference pairs, as pure functions of log-probabilities.

Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) and its relatives. For a diffusion model an
error takes the place of a negative log-probability (Diffusion-DPO, arXiv 2311.12908).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stepstack.tuning.config import PreferenceLoss


@dataclass(frozen=True, slots=True)
class PairScores:
    """Log-probabilities [B] of winners and losers by a model, summed over their tokens, and the numbers [B] of those
    tokens."""

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor


TIE = 1e-4  # nats of a log-ratio that are rounding


def preference_loss(cfg: PreferenceLoss, policy: PairScores, reference: PairScores | None) -> Tensor:
    """Loss [B] of each pair, without the likelihood term ``cfg.sft``. ``reference`` may be None for simpo alone.

    With x and y the log-ratios to the reference of winner and loser, b = beta and s the logistic function:
    sigmoid is -log s(b (x - y)) (arXiv 2305.18290, equation 7); hinge is max(0, 1 - b (x - y)) (arXiv 2309.06657);
    ipo is (x / tokens - y / tokens - 1 / 2b)^2 (arXiv 2310.12036, equation 17, each side divided by its own tokens, as
    its authors advise); robust is sigmoid corrected for flipped pairs (arXiv 2403.00409); apo_zero is 1 - s(b x) +
    s(b y) and apo_down s(b x) + 1 - s(b (x - y)) (arXiv 2408.06266, equations 7 and 8); dpop is sigmoid of b (x - y -
    penalty max(0, -x)) (arXiv 2402.13228); simpo is -log s(b (winner / tokens - loser / tokens) - margin) (arXiv
    2405.14734) of the log-probabilities themselves.
    """
    beta = cfg.beta
    if cfg.type == "simpo":
        mean_B = policy.chosen_B / policy.chosen_tokens_B - policy.rejected_B / policy.rejected_tokens_B
        return -logsigmoid(beta * mean_B - cfg.margin)
    x_B, y_B = log_ratios(policy, reference)
    match cfg.type:
        case "sigmoid":
            return -logsigmoid(beta * (x_B - y_B))
        case "hinge":
            return torch.relu(1 - beta * (x_B - y_B))
        case "ipo":
            return (x_B / policy.chosen_tokens_B - y_B / policy.rejected_tokens_B - 1 / (2 * beta)).square()
        case "robust":
            flipped = cfg.label_smoothing
            right_B, wrong_B = logsigmoid(beta * (x_B - y_B)), logsigmoid(-beta * (x_B - y_B))
            return (flipped * wrong_B - (1 - flipped) * right_B) / (1 - 2 * flipped)
        case "apo_zero":
            return 1 - torch.sigmoid(beta * x_B) + torch.sigmoid(beta * y_B)
        case "apo_down":
            return torch.sigmoid(beta * x_B) + 1 - torch.sigmoid(beta * (x_B - y_B))
        case "dpop":
            return -logsigmoid(beta * (x_B - y_B - cfg.penalty * torch.relu(-x_B)))


def log_ratios(policy: PairScores, reference: PairScores | None) -> tuple[Tensor, Tensor]:
    """Log-ratios [B] of winners and losers to the reference; beta times these are DPO's implicit rewards. ValueError
    without a reference."""
    if reference is None:
        raise ValueError("this loss needs a reference: give one, or take type=simpo")
    return policy.chosen_B - reference.chosen_B, policy.rejected_B - reference.rejected_B


def figures(cfg: PreferenceLoss, policy: PairScores, reference: PairScores | None) -> dict[str, Tensor]:
    """Metrics of pairs, summed over them: log-probabilities of winners and losers apart, because a falling winner is
    what surprises most; how many pairs are in the right order; and against a reference the rewards, with the greatest
    log-ratio."""
    out = {"chosen_logp": policy.chosen_B.detach().sum(), "rejected_logp": policy.rejected_B.detach().sum()}
    if reference is None:
        return out | {"right": (policy.chosen_B > policy.rejected_B).float().sum()}
    x_B, y_B = (ratio.detach() for ratio in log_ratios(policy, reference))
    out |= {"chosen_reward": cfg.beta * x_B.sum(), "rejected_reward": cfg.beta * y_B.sum()}
    out |= {"margin": cfg.beta * (x_B - y_B).sum(), "right": _in_order(x_B - y_B).sum()}
    return out | {"log_ratio_abs_max": torch.maximum(x_B.abs(), y_B.abs()).max()}


def _in_order(difference_B: Tensor) -> Tensor:
    """1 for a pair in the right order, 0 for one in the wrong order, and 1/2 for one as near to a tie as rounding gets,
    such as every pair before the first update."""
    return torch.where(difference_B.abs() < TIE, 0.5, (difference_B > 0).float())
