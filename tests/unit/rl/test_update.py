"""Which field goes where in the losses of actor and critic: old, new, sampled and reference log-probabilities all
differ, so that none can take another's place."""

import math
from dataclasses import replace

import pytest
import torch

from stepstack.batching.collate import collate
from stepstack.batching.rows import Row
from stepstack.generation.types import ToolCall
from stepstack.rl import update
from stepstack.rl.config import Gae, Grpo, Kl, PolicyLoss, ValueLoss
from tests import tools

NEW = [-1.0, -2.0, -0.5]
OLD = [-1.1, -1.7, -1.0]
SAMPLER = [-1.5, -1.6, -1.2]
REF = [-0.4, -2.5, -0.9]
ADVANTAGE = [1.0, -2.0, 0.5]
ENTROPY = [0.3, 0.7, 1.1]
VALUE_NOW, VALUE_THEN, RETURN = [0.9, 0.15, -0.5], [0.1, 0.1, 0.1], [1.0, 1.0, 1.0]


def micro_batch(**fields):
    """Two responses, of one and of two tokens."""
    micro = collate(tools.rows([(3, 1), (2, 2)]), pack=False, device="cpu")
    for name, values in fields.items():
        micro.store(name, torch.tensor(values))
    return micro


def actor_loss(folder, *, without: tuple[str, ...] = (), **changes):
    fields = {"old": OLD, "sampler": SAMPLER, "ref": REF, "advantage": ADVANTAGE}
    micro = micro_batch(**{name: values for name, values in fields.items() if name not in without})
    logp_N = torch.tensor(NEW, requires_grad=True)
    loss = update.policy_loss(tools.config(folder, **changes))
    out = loss(lambda **inputs: (logp_N, torch.tensor(ENTROPY)), micro)
    out.total.backward()
    return out, logp_N.grad


def critic_loss(folder, **changes):
    micro = micro_batch(value=VALUE_THEN, **{"return": RETURN})
    return update.value_loss(tools.config(folder, **changes))(lambda *inputs: torch.tensor(VALUE_NOW), micro)


def k3(of, to):
    """Schulman's k3 of KL(of || to) at tokens drawn from ``of``, summed."""
    return sum(math.exp(b - a) - 1 + (a - b) for a, b in zip(of, to, strict=True))


def surrogate(new, old, advantage, weight=1.0):
    ratio = math.exp(new - old)
    return -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage) * weight


def test_the_ratio_is_of_the_new_policy_to_the_old_one(tmp_path):
    out, _ = actor_loss(tmp_path, without=("ref",))
    assert out.total.item() == pytest.approx(sum(map(surrogate, NEW, OLD, ADVANTAGE)), abs=1e-6)
    assert out.metrics["ratio_max"].item() == pytest.approx(math.exp(0.5))
    assert out.metrics["clip_fraction"].item() == 2  # token 1 below 0.8 with A < 0, token 2 above 1.2 with A > 0


def test_importance_is_of_the_old_policy_to_the_sampler(tmp_path):
    """After the first update the policy has moved: importance corrects the engine, and the ratio the policy."""
    out, grad = actor_loss(tmp_path, without=("ref",), policy_loss=PolicyLoss(is_cap=1.3))
    weights = [min(1.3, math.exp(old - sampler)) for old, sampler in zip(OLD, SAMPLER, strict=True)]
    assert out.total.item() == pytest.approx(sum(map(surrogate, NEW, OLD, ADVANTAGE, weights)), abs=1e-6)
    assert grad.tolist() == pytest.approx([-math.exp(0.1) * 1.3, 0.0, 0.0], abs=1e-6)


def test_the_logged_kl_is_of_the_old_policy_which_sampled(tmp_path):
    """k3 is an estimate only where the tokens are drawn from its first distribution."""
    out, _ = actor_loss(tmp_path)
    assert out.metrics["kl"].item() == pytest.approx(k3(OLD, NEW), abs=1e-6)
    assert out.metrics["kl"].item() != pytest.approx(k3(NEW, OLD), abs=1e-3)


def test_the_logged_mismatch_is_of_the_sampler(tmp_path):
    metrics = actor_loss(tmp_path)[0].metrics
    assert metrics["mismatch_kl"].item() == pytest.approx(k3(SAMPLER, OLD), abs=1e-6)
    assert metrics["mismatch"].item() == pytest.approx(0.4 + 0.1 + 0.2, abs=1e-6)
    assert metrics["mismatch_max"].item() == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize(("place", "weight"), [("loss", 0.3), ("reward", 0.0)])
def test_the_kl_to_the_reference_is_of_the_policy_and_costs_where_it_belongs(tmp_path, place, weight):
    free = actor_loss(tmp_path, without=("ref",))[0].total.item()
    out, _ = actor_loss(tmp_path, kl=Kl(weight=0.3, place=place))
    assert out.metrics["ref_kl"].item() == pytest.approx(k3(NEW, REF), abs=1e-6)
    assert out.total.item() == pytest.approx(free + weight * k3(NEW, REF), abs=1e-6)


def test_entropy_comes_off_the_loss(tmp_path):
    free = actor_loss(tmp_path)[0].total.item()
    out, _ = actor_loss(tmp_path, entropy_weight=0.5)
    assert out.total.item() == pytest.approx(free - 0.5 * sum(ENTROPY), abs=1e-6)
    assert out.metrics["entropy"].item() == pytest.approx(sum(ENTROPY), abs=1e-6)


def test_the_critic_is_clipped_around_the_value_of_the_rollout(tmp_path):
    """The value moved from 0.1 to 0.9 is held at 0.3, 0.15 is free, and -0.5 is worse free than held."""
    errors = [0.5 * (0.3 - 1) ** 2, 0.5 * (0.15 - 1) ** 2, 0.5 * (-0.5 - 1) ** 2]
    assert critic_loss(tmp_path).total.item() == pytest.approx(sum(errors), abs=1e-6)
    free = [0.5 * (value - 1) ** 2 for value in VALUE_NOW]
    assert critic_loss(tmp_path, value_loss=ValueLoss(clip=None)).total.item() == pytest.approx(sum(free), abs=1e-6)
    of_rows = critic_loss(tmp_path, value_loss=ValueLoss(aggregate="seq-mean-token-mean")).total.item()
    assert of_rows == pytest.approx(errors[0] + (errors[1] + errors[2]) / 2, abs=1e-6)


def test_each_role_divides_by_its_own_aggregate(tmp_path):
    cfg = tools.config(tmp_path, value_loss=ValueLoss(aggregate="seq-mean-token-mean"))
    part = update.Minibatch(micros=[], spare=[], tokens=7.0, rows=3.0, packs=2.0, learned=3.0)
    assert update.loss_denominator(cfg.policy_loss, part) == 7
    assert update.loss_denominator(cfg.value_loss, part) == 3


@pytest.mark.parametrize("advantage", [Gae(gamma=0.5, lam=1.0, whiten=False), Grpo(scale="none")])
def test_a_tools_tokens_have_no_field_and_the_reward_is_on_the_last_token_that_was_sampled(tmp_path, advantage):
    """A response whose last two tokens are a tool's, beside one without a tool."""
    calls = (ToolCall(1, 2, True), ToolCall(4, 6, True))
    first, second = tools.rollout(tools.prompt(0, [5]), 0, range(2, 8)), tools.rollout(tools.prompt(0, [5]), 1, [9])
    rows = [Row.of(replace(first, calls=calls), 1.0, 0), Row.of(second, 0.0, 1)]
    assert [row.fields["sampler"].tolist() for row in rows] == [[-1.0] * 3, [-1.0]]
    batch = tools.batch(rows)
    batch.store("value", torch.zeros(4))
    update.credit(tools.make_run(tmp_path), batch, tools.config(tmp_path, advantage=advantage))
    expected = [0.25, 0.5, 1.0, 0.0] if isinstance(advantage, Gae) else [0.5, 0.5, 0.5, -0.5]
    assert batch.field("advantage").tolist() == expected
    assert collate(rows, pack=False, device="cpu").labels.tolist() == [2, 4, 5, 9]
