"""Divergences of two distributions, in numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from stepstack.models.lm.policy import MIN_LOGIT
from stepstack.tuning.config import Distillation
from stepstack.tuning.distillation import distillation_loss, divergence

STUDENT, TEACHER = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.8, 0.1, 0.1]]).log()
MIDDLE = (0.65, 0.175, 0.175)


def kl(a, b) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


S, T = (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)
ROOTS = [[math.sqrt(p) / sum(map(math.sqrt, of)) for p in of] for of in (S, T)]  # both at temperature 2


@pytest.mark.parametrize(
    ("cfg", "want"),
    [
        (Distillation(), kl(T, S)),
        (Distillation(), 0.192745),
        (Distillation(divergence="reverse"), kl(S, T)),
        (Distillation(divergence="reverse"), 0.223144),  # ln 1.25, since 2.5 * 0.625 is 1.25 squared
        (Distillation(divergence="js"), (kl(T, MIDDLE) + kl(S, MIDDLE)) / 2),
        (Distillation(temperature=2.0), kl(ROOTS[1], ROOTS[0])),
    ],
)
def test_divergences_in_numbers(cfg, want):
    assert divergence(cfg, STUDENT + 3.0, TEACHER - 2.0).tolist() == pytest.approx([want], abs=1e-6)


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_equal_ones_have_none_and_what_both_forbid_has_no_part(kind):
    cfg = Distillation(divergence=kind)
    assert divergence(cfg, STUDENT, STUDENT).item() == pytest.approx(0, abs=1e-7)
    banned = torch.full((1, 2), MIN_LOGIT)
    student, teacher = (torch.cat([of, banned], 1).requires_grad_() for of in (STUDENT, TEACHER))
    value = divergence(cfg, student, teacher.detach())
    assert value.item() == pytest.approx(divergence(cfg, STUDENT, TEACHER).item(), abs=1e-7)
    value.sum().backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[0, 3:].tolist() == [0, 0]
    assert student.grad[0, 0] < 0 < student.grad[0, 1]  # up with what the teacher says more often


def test_js_of_disjoint_distributions_is_ln_2():
    one, other = torch.tensor([[0.0, MIN_LOGIT]]), torch.tensor([[MIN_LOGIT, 0.0]])
    assert divergence(Distillation(divergence="js"), one, other).item() == pytest.approx(math.log(2))


def test_numbers_are_single_precision_whatever_the_logits_are():
    assert divergence(Distillation(), STUDENT.bfloat16(), TEACHER.bfloat16()).dtype == torch.float32


def test_the_loss_weighs_both_and_squares_the_temperature():
    cfg = Distillation(weight=0.7, likelihood=0.8, temperature=2.0)
    assert distillation_loss(cfg, torch.tensor(-3.0), torch.tensor(0.5)).item() == pytest.approx(2.4 + 0.7 * 4 * 0.5)


def test_nothing_to_learn_is_refused():
    with pytest.raises((ValueError, ValidationError), match="nothing would be learned"):
        Distillation(weight=0.0, likelihood=0.0)
