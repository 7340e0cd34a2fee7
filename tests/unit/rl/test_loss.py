"""Losses against golden numbers, and that padding cannot reach them."""

import math

import pytest
import torch
from torch import nn

from stepstack.batching.collate import collate
from stepstack.rl import update
from stepstack.rl.config import PolicyLoss, ValueLoss
from stepstack.rl.loss import denominator, kl_estimate, surrogate, token_weights, truncated_importance, value_error
from tests import tools


def loss_of(ratio: float, advantage: float, **cfg):
    logp = torch.tensor([math.log(ratio)])
    return surrogate(logp, torch.zeros(1), torch.tensor([float(advantage)]), [1], PolicyLoss(**cfg))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [(1.5, 1, -1.2, 1), (1.5, -1, 1.5, 0), (0.5, 1, -0.5, 0), (0.5, -1, 0.8, 1), (1, 2.5, -2.5, 0), (1, -3, 3, 0)],
)
def test_clip_signs(ratio, advantage, expected, clipped):
    loss, seen, was_clipped = loss_of(ratio, advantage)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert seen.item() == pytest.approx(ratio, abs=1e-6)
    assert was_clipped.item() == clipped


@pytest.mark.parametrize(("ratio", "free", "dual"), [(5, 5, 3), (3, 3, 3), (1.1, 1.1, 1.1), (0.5, 0.8, 0.8)])
def test_dual_clip_bounds_the_loss_of_negative_advantages(ratio, free, dual):
    assert loss_of(ratio, -1)[0].item() == pytest.approx(free, abs=1e-5)
    assert loss_of(ratio, -1, dual_clip=3.0)[0].item() == pytest.approx(dual, abs=1e-5)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 5.0])
def test_dual_clip_leaves_positive_advantages(ratio):
    assert loss_of(ratio, 1, dual_clip=3.0)[0].item() == loss_of(ratio, 1)[0].item()


@pytest.mark.parametrize(("ratio", "advantage", "expected"), [(1.27, 1, -1.27), (1.5, 1, -1.28), (0.5, -1, 0.8)])
def test_clip_higher_has_an_upper_bound_of_its_own(ratio, advantage, expected):
    assert loss_of(ratio, advantage, clip_high=0.28)[0].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"), [(1.5, 1, 0.0), (0.5, -1, 0.0), (1.5, -1, 1.5), (1, 1, -1.0)]
)
def test_a_clipped_token_has_no_gradient(ratio, advantage, gradient):
    logp = torch.tensor([math.log(ratio)], requires_grad=True)
    surrogate(logp, torch.zeros(1), torch.tensor([float(advantage)]), [1], PolicyLoss())[0].sum().backward()
    assert logp.grad.item() == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("log_ratio", [-1e4, -95.0, 79.0, 95.0, 1e4])
def test_no_log_ratio_makes_a_loss_or_gradient_that_is_not_finite(log_ratio, advantage, dual_clip):
    logp = torch.tensor([log_ratio], requires_grad=True)
    loss, *_ = surrogate(logp, torch.zeros(1), torch.tensor([advantage]), [1], PolicyLoss(dual_clip=dual_clip))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logp.grad.isfinite().all()
    if advantage == 0:
        assert (loss.item(), logp.grad.item()) == (0, 0)


# -- GSPO and CISPO: responses of 1, 3 and 2 tokens --------------------------------------------------------------------

CUTS = [1, 3, 2]
NEW = [-1.0, -2.0, -0.5, -1.5, -0.7, -0.2]
OLD = [-1.3, -2.1, -0.4, -1.2, -0.75, -0.24]
PER_ROW = [1.0, -2.0, 0.5]


def of_rows(values):
    return [values[sum(CUTS[:i]) : sum(CUTS[: i + 1])] for i in range(len(CUTS))]


def sequence_ratios():
    """s = (pi_new(y) / pi_old(y)) ** (1 / |y|) of each response (GSPO eq. 7)."""
    pairs = zip(of_rows(NEW), of_rows(OLD), strict=True)
    return [(math.exp(sum(new)) / math.exp(sum(old))) ** (1 / len(new)) for new, old in pairs]


def gspo(advantages, clip):
    """(sum over responses of -min(s A, clip(s) A), its gradient of each token's log-probability)."""
    loss, gradient = 0.0, []
    for s, advantage, length in zip(sequence_ratios(), advantages, CUTS, strict=True):
        free, held = s * advantage, min(max(s, 1 - clip), 1 + clip) * advantage
        loss -= min(free, held)
        gradient += [-free * (free <= held) / length] * length  # d log s is the mean of the tokens' d logp
    return loss, gradient


def seen_loss(advantages=PER_ROW, **cfg):
    logp = torch.tensor(NEW, requires_grad=True)
    advantage = torch.tensor(advantages).repeat_interleave(torch.tensor(CUTS))
    settings = PolicyLoss(**cfg)
    loss, _, clipped = surrogate(logp, torch.tensor(OLD), advantage, CUTS, settings)
    total = (loss * token_weights(CUTS, settings.aggregate)).sum()
    total.backward()
    return total.item(), logp.grad.tolist(), clipped.tolist()


@pytest.mark.parametrize("ratio", ["sequence", "sequence-token"])
@pytest.mark.parametrize("advantages", [PER_ROW, [-1.0, -1.0, 3.0]])
def test_gspo_clips_the_ratio_of_sequences(ratio, advantages):
    cfg = {"ratio": ratio, "clip_low": 0.06, "clip_high": 0.06, "aggregate": "seq-mean-token-mean"}
    found, gradient, clipped = seen_loss(advantages, **cfg)
    expected, slope = gspo(advantages, 0.06)
    assert found == pytest.approx(expected, abs=1e-6)
    assert gradient == pytest.approx(slope, abs=1e-6)
    assert 0 < sum(clipped) < 6
    assert all(len(set(part)) == 1 for part in of_rows(clipped))  # a response is clipped whole


def test_gspo_token_has_the_advantage_of_each_token():
    """Where tokens of a response differ in advantage, the gradient of each is its own (GSPO eq. 14)."""
    logp = torch.tensor(NEW, requires_grad=True)
    advantage = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5, 4.0])
    cfg = PolicyLoss(ratio="sequence-token", clip_low=0.9, clip_high=9.0)
    surrogate(logp, torch.tensor(OLD), advantage, CUTS, cfg)[0].sum().backward()
    s = torch.tensor(sequence_ratios()).repeat_interleave(torch.tensor(CUTS))
    torch.testing.assert_close(logp.grad, -s * advantage)


def test_cispo_weighs_log_probabilities_by_the_clipped_ratio():
    """-clip(r) A logp, whose gradient is -clip(r) A also where the clip decides."""
    found, gradient, clipped = seen_loss(surrogate="cispo", clip_low=1.0, clip_high=0.2)
    weights = [min(1.2, math.exp(new - old)) for new, old in zip(NEW, OLD, strict=True)]
    slope = [-w * a for w, a in zip(weights, [1.0] + [-2.0] * 3 + [0.5] * 2, strict=True)]
    assert found == pytest.approx(sum(g * logp for g, logp in zip(slope, NEW, strict=True)), abs=1e-6)
    assert gradient == pytest.approx(slope, abs=1e-6)
    assert clipped == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert seen_loss(surrogate="cispo", clip_low=0.1, clip_high=0.2)[1][3] == pytest.approx(2.0 * 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dual_clip": 3.0}, "dual_clip bounds"), ({"ratio": "sequence-token"}, "ratio=sequence is the same")],
)
def test_cispo_refuses_what_it_would_not_use(changes, message):
    with pytest.raises(ValueError, match=message):
        PolicyLoss(surrogate="cispo", **changes)


@pytest.mark.parametrize(
    ("new", "old", "target", "expected", "free"),
    [(0.9, 0.1, 1.0, 0.245, 0.005), (0.15, 0.1, 1.0, 0.36125, 0.36125), (-0.5, 0.1, 1.0, 1.125, 1.125)],
)
def test_value_clip(new, old, target, expected, free):
    given = [torch.tensor([x]) for x in (new, old, target)]
    assert value_error(*given, clip=0.2).item() == pytest.approx(expected, abs=1e-6)
    assert value_error(*given, clip=None).item() == pytest.approx(free, abs=1e-6)


@pytest.mark.parametrize(("estimator", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", 0.10653066)])
def test_kl_estimators(estimator, expected):
    found = kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.5]), estimator)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative():
    torch.manual_seed(0)
    p, q = (torch.log_softmax(torch.randn(12).double(), -1) for _ in "pq")
    exact = (p.exp() * (p - q)).sum().item()
    for estimator in ("k1", "k3"):
        assert (p.exp() * kl_estimate(p, q, estimator)).sum().item() == pytest.approx(exact, abs=1e-12)
    assert (kl_estimate(p, q, "k3") >= 0).all()


def test_an_unknown_kl_estimator_is_refused():
    with pytest.raises(ValueError, match="k9"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k9")


def test_importance_weights_are_capped_and_carry_no_gradient():
    logp = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    weight = truncated_importance(logp, torch.zeros(3), cap=2.0)
    torch.testing.assert_close(weight, torch.tensor([1.0, 1.648721, 2.0]))
    assert not weight.requires_grad


# -- aggregation: two responses, one of 2 tokens with loss 1 and one of 8 with loss 0 -------------------------------

LOSS, LENGTHS = torch.tensor([1.0] * 2 + [0.0] * 8), [2, 8]


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("token-mean", 0.2), ("seq-mean-token-mean", 0.5), ("seq-mean-token-sum", 1.0), ("seq-mean-token-sum-norm", 0.05)],
)
@pytest.mark.parametrize("micros", [[[0, 1]], [[0], [1]], [[1], [0]]])
def test_aggregates_do_not_depend_on_micro_batches(aggregate, expected, micros):
    parts = LOSS.split(LENGTHS)
    total = 0.0
    for micro in micros:
        loss = torch.cat([parts[i] for i in micro])
        total += (loss * token_weights([LENGTHS[i] for i in micro], aggregate, max_tokens=20)).sum().item()
    found = total / denominator(aggregate, tokens=10, rows=2, packs=len(micros))
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("micros", "expected"), [([[0, 1]], 0.2), ([[0], [1]], 0.5)])
def test_pack_mean_is_orz_and_does_depend_on_the_packs(micros, expected):
    parts = LOSS.split(LENGTHS)
    weighted = [
        (torch.cat([parts[i] for i in micro]) * token_weights([LENGTHS[i] for i in micro], "pack-mean")).sum()
        for micro in micros
    ]
    found = sum(weighted).item() / denominator("pack-mean", tokens=10, rows=2, packs=len(micros))
    assert found == pytest.approx(expected, abs=1e-7)


def test_token_weights_of_each_mode():
    assert token_weights([1, 2], "token-mean").tolist() == [1.0, 1.0, 1.0]
    assert token_weights([1, 2], "seq-mean-token-mean").tolist() == [1.0, 0.5, 0.5]
    assert token_weights([1, 3], "seq-mean-token-sum-norm", max_tokens=8).tolist() == [0.125] * 4
    assert token_weights([1, 3], "pack-mean").tolist() == [0.25] * 4


# -- padding --------------------------------------------------------------------------------------------------------


class PoisonedPads(nn.Module):
    """Log-probabilities of a bigram table; whatever is computed at a padded position is NaN."""

    def __init__(self, poison: float):
        super().__init__()
        self.table = nn.Parameter(torch.randn(tools.VOCAB, tools.VOCAB, generator=torch.Generator().manual_seed(0)))
        self.poison = poison

    def hidden(self, input_ids, position_ids, width_B):
        out = self.table[input_ids]
        pads = position_ids >= width_B[:, None]
        return torch.where(pads[..., None], self.poison, out)

    def forward(self, input_ids, position_ids, select, labels=None, temperature=1.0):
        width_B = torch.tensor([len(row) for row in self.rows])
        hidden = self.hidden(input_ids, position_ids, width_B).flatten(0, 1)[select]
        if labels is None:
            return hidden[:, 0]
        logp = torch.log_softmax(hidden / temperature, -1)
        return logp.gather(-1, labels[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("make_loss", [update.policy_loss, update.value_loss])
def test_a_nan_at_a_padded_position_reaches_neither_loss_nor_gradient(tmp_path, poison, make_loss):
    rows = tools.rows([(3, 9), (5, 2), (1, 1)])
    for row in rows:
        one = torch.ones(len(row.ids))
        row.fields |= {"advantage": one, "value": 0.1 * one, "return": one}
    micro = collate(rows, pack=False, device="cpu")
    assert micro.input_ids.shape == (3, 12)
    grads = []
    for value in (poison, 0.0):
        module = PoisonedPads(value)
        module.rows = rows
        out = make_loss(tools.config(tmp_path))(module, micro)
        out.total.backward()
        assert torch.isfinite(out.total)
        assert all(torch.isfinite(x).all() for x in out.metrics.values())
        grads.append(module.table.grad)
    assert torch.equal(*grads)
    assert grads[0].abs().sum() > 0


def test_defaults_are_orz():
    assert (PolicyLoss().clip_low, PolicyLoss().clip_high, ValueLoss().clip) == (0.2, 0.2, 0.2)
    assert (PolicyLoss().dual_clip, PolicyLoss().is_cap) == (None, None)
