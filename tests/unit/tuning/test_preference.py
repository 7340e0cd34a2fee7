"""Losses of pairs, in numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from stepstack.tuning.config import DpoStage, PreferenceLoss, SftStage
from stepstack.tuning.preference import PairScores, figures, log_ratios, preference_loss

# Winner 3 nats up on the reference, loser 1 nat up; 4 and 2 tokens.
POLICY = PairScores(*map(torch.tensor, ([-8.0], [-5.0], [4.0], [2.0])))
REFERENCE = PairScores(*map(torch.tensor, ([-11.0], [-6.0], [4.0], [2.0])))
FALLEN = replace(POLICY, chosen_B=torch.tensor([-12.0]))  # the winner 1 nat down


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("cfg", "policy", "want"),
    [
        (PreferenceLoss(beta=0.5), POLICY, -math.log(s(0.5 * 2))),
        (PreferenceLoss(type="hinge", beta=0.25), POLICY, 1 - 0.25 * 2),
        (PreferenceLoss(type="hinge", beta=1.0), POLICY, 0.0),
        (PreferenceLoss(type="ipo", beta=0.5), POLICY, (3 / 4 - 1 / 2 - 1 / (2 * 0.5)) ** 2),
        (
            PreferenceLoss(type="robust", beta=0.5, label_smoothing=0.1),
            POLICY,
            (-0.9 * math.log(s(1)) + 0.1 * math.log(s(-1))) / 0.8,
        ),
        (PreferenceLoss(type="apo_zero", beta=0.5), POLICY, 1 - s(1.5) + s(0.5)),
        (PreferenceLoss(type="apo_down", beta=0.5), POLICY, s(1.5) + 1 - s(1.0)),
        (PreferenceLoss(type="dpop", beta=0.5), POLICY, -math.log(s(1.0))),
        (PreferenceLoss(type="dpop", beta=0.5, penalty=3.0), FALLEN, -math.log(s(0.5 * (-1 - 1 - 3 * 1)))),
        (PreferenceLoss(type="simpo", beta=2.0, margin=0.7), POLICY, -math.log(s(2 * (-8 / 4 + 5 / 2) - 0.7))),
    ],
    ids=lambda x: x.type if isinstance(x, PreferenceLoss) else "",
)
def test_losses_in_numbers(cfg, policy, want):
    reference = None if cfg.type == "simpo" else REFERENCE
    assert preference_loss(cfg, policy, reference).tolist() == pytest.approx([want], abs=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "dpop"])
def test_a_policy_that_is_its_reference_pays_ln_2(kind):
    assert preference_loss(PreferenceLoss(type=kind), POLICY, POLICY).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge", "robust", "apo_zero", "dpop", "simpo"])
def test_gradients_raise_the_winner_and_lower_the_loser(kind):
    chosen, rejected = torch.tensor([-9.0], requires_grad=True), torch.tensor([-5.0], requires_grad=True)
    policy = PairScores(chosen, rejected, POLICY.chosen_tokens_B, POLICY.rejected_tokens_B)
    preference_loss(PreferenceLoss(type=kind), policy, REFERENCE).sum().backward()
    assert chosen.grad < 0 < rejected.grad


def test_apo_down_lowers_both():
    chosen, rejected = torch.tensor([-9.0], requires_grad=True), torch.tensor([-5.0], requires_grad=True)
    policy = PairScores(chosen, rejected, POLICY.chosen_tokens_B, POLICY.rejected_tokens_B)
    same = PairScores(*(x.detach() for x in (chosen, rejected)), POLICY.chosen_tokens_B, POLICY.rejected_tokens_B)
    loss = preference_loss(PreferenceLoss(type="apo_down"), replace(policy, rejected_B=rejected + 20), same)
    loss.sum().backward()
    assert chosen.grad > 0
    assert rejected.grad > 0


def test_no_reference_is_said():
    with pytest.raises(ValueError, match="needs a reference"):
        log_ratios(POLICY, None)
    assert [PreferenceLoss(type=kind).needs_reference for kind in ("sigmoid", "simpo")] == [True, False]


def test_figures_are_sums_over_pairs():
    both = [
        PairScores(*(torch.cat([a, b]) for a, b in zip(x, y, strict=True)))
        for x, y in (
            [[getattr(scores, name) for name in PairScores.__dataclass_fields__] for scores in (POLICY, FALLEN)],
            [[getattr(scores, name) for name in PairScores.__dataclass_fields__] for scores in (REFERENCE, REFERENCE)],
        )
    ]
    out = {name: value.item() for name, value in figures(PreferenceLoss(beta=0.5), *both).items()}
    assert out == pytest.approx(
        {
            "chosen_logp": -20,
            "rejected_logp": -10,
            "chosen_reward": 0.5 * (3 - 1),
            "rejected_reward": 0.5 * 2,
            "margin": 0.5 * (2 - 2),
            "right": 1,
            "log_ratio_abs_max": 3,
        }
    )
    assert figures(PreferenceLoss(type="simpo"), both[0], None).keys() == {"chosen_logp", "rejected_logp", "right"}


def test_stages_are_as_long_as_they_say():
    assert SftStage(epochs=2.5, batch=4).updates(10) == 7
    assert SftStage(steps=3).updates(10) == 3
    assert DpoStage(epochs=0.1, batch=64).updates(10) == 1
    for wrong in ({}, {"epochs": 1.0, "steps": 2}):
        with pytest.raises((ValueError, ValidationError), match="give one of the two"):
            SftStage(**wrong)
    with pytest.raises((ValueError, ValidationError), match="belongs to type=robust"):
        PreferenceLoss(label_smoothing=0.1)
