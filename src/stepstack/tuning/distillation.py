"""Divergences of a student's distribution of the next token from its teacher's, as pure functions of logits.

Distillation by soft targets (Hinton et al. 2015, arXiv 1503.02531), and the generalized Jensen-Shannon divergence of
GKD (Agarwal et al. 2023, arXiv 2306.13649), of which these are the two ends and the middle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepstack.tuning.config import Distillation


def divergence(cfg: Distillation, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Divergence [N] in nats, fp32, of the distributions softmax(logits / temperature).

    With t and s those of teacher and student: forward is KL(t || s), which wants the student to cover all that the
    teacher may say; reverse is KL(s || t), which wants it to say nothing that the teacher would not; js is the mean of
    KL(t || m) and KL(s || m) with m the mean of both, at most ln 2. Logits that are ``models.lm.policy.MIN_LOGIT`` in
    both have no part in any.
    """
    student, teacher = (
        torch.log_softmax(logits.float() / cfg.temperature, dim=-1) for logits in (student_NV, teacher_NV)
    )
    match cfg.divergence:
        case "forward":
            return _kl(teacher, student)
        case "reverse":
            return _kl(student, teacher)
        case "js":
            mean = torch.logaddexp(student, teacher) - math.log(2)
            return (_kl(teacher, mean) + _kl(student, mean)) / 2


def distillation_loss(cfg: Distillation, logp_N: Tensor, divergence_N: Tensor) -> Tensor:
    """Loss [N] of tokens: negative log-likelihood and divergence by their weights, the divergence times the square of
    its temperature, which keeps the size of its gradients (arXiv 1503.02531, section 2)."""
    return -cfg.likelihood * logp_N + cfg.weight * cfg.temperature**2 * divergence_N


def _kl(logp_NV: Tensor, other_NV: Tensor) -> Tensor:
    return (logp_NV.exp() * (logp_NV - other_NV)).sum(-1)
