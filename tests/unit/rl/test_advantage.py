"""Credit assignment against golden numbers computed by independent scripts (GAE by its definition, std by hand)."""

import itertools
import math
import random
import statistics
from types import SimpleNamespace

import pytest
import torch

from stepstack.batching.config import BatchLayout
from stepstack.batching.rows import chunk_of
from stepstack.core.types import SingleProcess
from stepstack.generation.types import Group
from stepstack.records import Score
from stepstack.rl.advantage import explained_variance, gae, group_relative, whiten
from stepstack.rl.config import Gae, Grpo, ReinforcePlusPlus, Remax, Rloo
from stepstack.rl.experience import Scored, collect, score_all, shared_out, summary
from stepstack.rl.update import credit
from tests import tools

PACKED_REWARDS = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0])
PACKED_VALUES = torch.tensor([0.2, 0.4, 0.6, 0.3, 0.1])
MIXED = torch.tensor([0.8, 0.6, 0.4, -0.3, -0.1])
WHITE = [1.24804, 0.768025, 0.288009, -1.392045, -0.912029]


def close(found, expected, atol=1e-6):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("gamma", "lam", "advantages", "returns"),
    [
        (1.0, 1.0, [0.9, 0.7, 0.8, 0.4, 0.5], [1.0] * 5),
        (1.0, 0.95, [0.787516, 0.618437, 0.75625, 0.375, 0.5], [0.887516, 0.918437, 0.95625, 0.975, 1.0]),
        (0.99, 0.95, [0.753433, 0.591635, 0.737518, 0.36525, 0.5], [0.853433, 0.891635, 0.937518, 0.96525, 1.0]),
        (1.0, 0.0, [0.2, -0.1, 0.4, -0.1, 0.5], [0.3, 0.2, 0.6, 0.5, 1.0]),
    ],
)
def test_gae(gamma, lam, advantages, returns):
    values, rewards = torch.tensor([0.1, 0.3, 0.2, 0.6, 0.5]), torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    found = gae(rewards, values, [5], gamma, lam)
    close(found[0], advantages)
    close(found[1], returns)


@pytest.mark.parametrize(
    ("lam", "right", "leaking"),
    [
        (1.0, [0.8, 0.6, 0.4, 0.7, 0.9], [1.8, 1.6, 1.4, 0.7, 0.9]),
        (0.95, [0.751, 0.58, 0.4, 0.655, 0.9], [1.583331, 1.456137, 1.32225, 0.655, 0.9]),
    ],
)
def test_gae_does_not_cross_from_one_response_to_the_next(lam, right, leaking):
    close(gae(PACKED_REWARDS, PACKED_VALUES, [3, 2], 1.0, lam)[0], right)
    close(gae(PACKED_REWARDS, PACKED_VALUES, [5], 1.0, lam)[0], leaking)  # what a missing reset would give


def test_gae_with_gamma_and_lambda_one_is_reward_minus_value():
    torch.manual_seed(0)
    lengths = [1, 7, 3, 12]
    values = torch.randn(sum(lengths))
    rewards, scores = torch.zeros(sum(lengths)), torch.tensor([1.0, 0.0, 1.0, 1.0])
    rewards[torch.tensor(lengths).cumsum(0) - 1] = scores
    advantages, returns = gae(rewards, values, lengths, 1.0, 1.0)
    close(returns, scores.repeat_interleave(torch.tensor(lengths)))
    close(advantages, scores.repeat_interleave(torch.tensor(lengths)) - values)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.97, 0.9), (1.0, 0.0), (0.0, 1.0)])
def test_gae_is_the_sum_of_discounted_errors(gamma, lam):
    """By its definition, in float64, for lengths around powers of two and a reward at each token."""
    torch.manual_seed(0)
    lengths = [1, 2, 3, 4, 5, 31, 32, 33]
    rewards, values = torch.randn(2, sum(lengths))
    advantages, returns = gae(rewards, values, lengths, gamma, lam)
    expected = []
    for r, v in zip(rewards.split(lengths), values.split(lengths), strict=True):
        r, v = r.tolist(), [*v.tolist(), 0.0]
        errors = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        expected += [sum((gamma * lam) ** k * e for k, e in enumerate(errors[t:])) for t in range(len(r))]
    close(advantages, expected, atol=1e-5)
    close(returns, torch.tensor(expected) + values, atol=1e-5)


def test_gae_computes_in_fp32_from_bf16_values():
    values = PACKED_VALUES.bfloat16()
    advantages, returns = gae(PACKED_REWARDS.bfloat16(), values, [3, 2], 0.99, 0.95)
    expected = gae(PACKED_REWARDS, values.float(), [3, 2], 0.99, 0.95)
    assert advantages.dtype == returns.dtype == torch.float32
    close(advantages, expected[0])


def test_whitening_divides_by_the_population_std():
    close(whiten(MIXED), WHITE)
    close(whiten(torch.tensor([1.0, 2.0, 3.0])), [-1.224745, 0.0, 1.224745])  # Bessel's would be -1, 0, 1


def test_orz_parity_rounds_whitened_advantages_to_bf16():
    rounded = whiten(MIXED).bfloat16().float()
    close(rounded, [1.25, 0.76953125, 0.287109375, -1.390625, -0.91015625], atol=0)
    assert rounded.sum().item() == pytest.approx(0.005859, abs=1e-6)


@pytest.mark.parametrize("value", [0.3, 0.0, -7.25])
def test_whitening_constant_advantages_gives_zeros(value):
    close(whiten(torch.full((3,), value)), [0.0] * 3)


@pytest.mark.parametrize("cut", range(6))
def test_whitening_over_processes_is_whitening_of_the_whole(cut):
    """Each fake process adds what the other one computed; the second of its two sums needs the first one's mean."""
    parts = [MIXED[:cut], MIXED[cut:]]
    whole = [torch.tensor([5.0, MIXED.double().sum()]), ((MIXED.double() - MIXED.double().mean()) ** 2).sum()[None]]
    found = []
    for part in parts:
        sums, own = iter(whole), []
        found.append(whiten(part, lambda x, sums=sums, own=own: own.append(x) or next(sums).double()))
        counted = [len(part), part.double().sum()]
        torch.testing.assert_close(own[0], torch.tensor(counted).double())  # what it gave to the others
    close(torch.cat(found), WHITE)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Grpo(scale="std"), [1.4997, -0.4999, -0.4999, -0.4999]),
        (Grpo(scale="population"), [1.732051, -0.57735, -0.57735, -0.57735]),
        (Grpo(scale="none"), [0.75, -0.25, -0.25, -0.25]),  # Dr. GRPO, and ORZ's script
        (Rloo(), [1.0, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_group_relative(kind, expected):
    close(group_relative([1, 0, 0, 0], kind), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("right", "positive", "negative", "sample"),
    [
        (1, 7.937254, -0.125988, 7.868705),
        (4, 3.872983, -0.258199, 3.841032),
        (32, 1.0, -1.0, 0.99196),
        (63, 0.125988, -7.937254, 0.1249),
    ],
)
def test_a_group_of_64(right, positive, negative, sample):
    scores = [1.0] * right + [0.0] * (64 - right)
    population = group_relative(scores, Grpo(scale="population"))
    assert population[0].item() == pytest.approx(positive, abs=2e-6)
    assert population[-1].item() == pytest.approx(negative, abs=2e-6)
    assert group_relative(scores, Grpo())[0].item() == pytest.approx(sample, abs=2e-6)


@pytest.mark.parametrize("kind", [Grpo(), Grpo(scale="population"), Grpo(scale="none"), Rloo()])
@pytest.mark.parametrize("scores", [[1.0] * 4, [0.0] * 4, [0.1] * 3, [1.0]])
def test_a_group_without_differences_gives_zeros(kind, scores):
    assert group_relative(scores, kind).tolist() == [0.0] * len(scores)


def test_rloo_by_brute_force():
    rng = random.Random(0)
    for n in (2, 3, 8):
        scores = [rng.random() for _ in range(n)]
        brute = [s - statistics.fmean(scores[:i] + scores[i + 1 :]) for i, s in enumerate(scores)]
        close(group_relative(scores, Rloo()), brute)


# -- REINFORCE++ and ReMax, by verl's formulas on padded rows ----------------------------------------------------------

LENGTHS, SCORES = [2, 4, 1, 3], [1.0, 0.0, 0.5, 2.0]
BESSEL = math.sqrt(sum(LENGTHS) / (sum(LENGTHS) - 1))  # verl has the sample's deviation, we the population's, as ORZ


def masked_whiten(x_RT, mask_RT):
    """verl's: the sample variance over all tokens, and 1e-8 added to it."""
    values_N = x_RT[mask_RT]
    return (values_N - values_N.mean()) * (values_N.var() + 1e-8).rsqrt()


def padded(gamma=1.0):
    """(mask, reward to go) [R, T] of a reward on the last token of each row."""
    mask_RT = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    to_go_RT = torch.zeros(mask_RT.shape)
    for row, (length, score) in enumerate(zip(LENGTHS, SCORES, strict=True)):
        for t in range(length):
            to_go_RT[row, t] = gamma ** (length - 1 - t) * score
    return mask_RT, to_go_RT


def credited(folder, kind, baselines=None):
    """Advantages [N] of two groups of two rows, by the loop's own function."""
    run = tools.make_run(folder, advantage=kind)
    rows = tools.rows([(3, length) for length in LENGTHS], n=2)
    for row, score in zip(rows, SCORES, strict=True):
        row.reward = score
    batch = tools.batch(rows)
    batch.baselines |= baselines or {}
    credit(run, batch, run.config)
    return batch.field("advantage")


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_plus_plus_is_the_whitened_discounted_reward(tmp_path, gamma):
    mask_RT, to_go_RT = padded(gamma)
    close(credited(tmp_path, ReinforcePlusPlus(gamma=gamma)), masked_whiten(to_go_RT, mask_RT) * BESSEL, atol=1e-5)


def test_grpo_without_scale_and_whitened_is_reinforce_plus_plus_with_its_baseline(tmp_path):
    mask_RT, to_go_RT = padded()
    mean_R = to_go_RT[:, 0].reshape(2, 2).mean(1).repeat_interleave(2)
    expected = masked_whiten(to_go_RT - mean_R[:, None], mask_RT) * BESSEL
    close(credited(tmp_path, Grpo(scale="none", whiten=True)), expected, atol=1e-5)


def test_remax_takes_off_the_score_of_the_greedy_response(tmp_path):
    found = credited(tmp_path, Remax(), {0: 1.0, 1: 0.25})
    per_row = torch.tensor([0.0, -1.0, 0.25, 1.75])
    close(found, per_row.repeat_interleave(torch.tensor(LENGTHS)))


def test_groups_are_keyed_by_index_not_by_text_nor_by_order(tmp_path):
    """Two prompts of one text, whose groups and samples arrive shuffled."""
    of = [tools.prompt(index, (5, 6), text="the same text") for index in (7, 3)]
    value = {(7, s): float(s == 0) for s in range(4)} | {(3, s): float(s != 0) for s in range(4)}

    def reward(rollouts):
        return [Score(value[r.problem.index, r.sample]) for r in rollouts]

    seen = set()
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 5):
        groups = [
            Group(p, tuple(tools.rollout(p, s, (9,) * (s + 1)) for s in order)) for p in of[:: 1 - 2 * (order[0] % 2)]
        ]
        batch, metrics = collect(
            SingleProcess(), tools.config(tmp_path), score_all(SingleProcess(), groups, reward), seed=0
        )
        assert batch.scores == {7: [1.0, 0.0, 0.0, 0.0], 3: [0.0, 1.0, 1.0, 1.0]}
        assert [(row.group, row.sample, len(row.ids)) for row in batch.rows] == [
            (g, s, s + 1) for g in (3, 7) for s in range(4)
        ]
        assert all(row.reward == value[row.group, row.sample] for row in batch.rows)
        assert metrics["frac_zero_std"] == 0.0
        seen.add(str(batch.rows))
    assert len(seen) == 1


def test_the_fraction_of_groups_without_signal_is_counted():
    of = [tools.prompt(i, (5,)) for i in range(4)]
    groups = [Group(p, tuple(tools.rollout(p, s, (9,)) for s in range(2))) for p in of]
    scores = {0: [0.0, 0.0], 1: [1.0, 1.0], 2: [0.0, 1.0], 3: [1.0, 0.0]}
    metrics = summary(
        score_all(SingleProcess(), groups, lambda rs: [Score(scores[r.problem.index][r.sample]) for r in rs])
    )
    assert metrics["frac_zero_std"] == 0.5
    assert metrics["pass_at_n"] == 0.75
    assert metrics["reward"] == 0.5


def test_an_empty_response_trains_nothing_and_leaves_its_group_in_place(tmp_path):
    of = tools.prompt(0, (5, 6))
    group = Group(of, tuple(tools.rollout(of, s, ids) for s, ids in enumerate([(9,), (), (8, 7)])))
    scored = score_all(SingleProcess(), [group], lambda rs: [Score(float(r.sample)) for r in rs])
    batch, _ = collect(SingleProcess(), tools.config(tmp_path), scored, seed=0)
    assert batch.scores == {0: [0.0, 1.0, 2.0]}
    assert [(row.index, row.sample, row.reward) for row in batch.rows] == [(0, 0, 0.0), (1, 2, 2.0)]
    assert batch.size == 2


def test_rollouts_of_a_prompt_stay_on_one_process_where_they_share_it(tmp_path):
    of = [tools.prompt(i, (5,) * (2 + i)) for i in range(6)]
    groups = [Group(p, tuple(tools.rollout(p, s, (9,) * (1 + s)) for s in range(4))) for p in of]
    scored = score_all(SingleProcess(), groups, lambda rs: [Score(float(r.sample)) for r in rs])
    layout = BatchLayout(share_prompts=True)

    def rows_of(rank: int, processes: int, of: list[Scored], **changes):
        world = SimpleNamespace(rank=rank, processes=processes)
        return shared_out(world, tools.config(tmp_path, layout=layout, **changes), of, seed=0).rows

    shares = [rows_of(rank, 3, scored, critic_updates=1) for rank in range(3)]
    assert sorted(row.index for share in shares for row in share) == list(range(24))
    assert sorted(row.group for share in shares for row in share[::4]) == list(range(6))
    assert all(len({row.group for row in share}) == 2 for share in shares)
    work = [sum(2 + row.group for row in share[::4]) + sum(len(row.ids) for row in share) for share in shares]
    assert max(work) - min(work) <= 2
    parts = [(row.group, chunk_of(24, 2, 0)[row.index]) for row in rows_of(0, 2, scored, critic_updates=2)]
    others = [(row.group, chunk_of(24, 2, 0)[row.index]) for row in rows_of(1, 2, scored, critic_updates=2)]
    assert not set(parts) & set(others)  # what one mini-batch has of a prompt is on one process
    with pytest.raises(ValueError, match="1 prompts are too few for 2 processes"):
        rows_of(0, 2, scored[:4], critic_updates=1)


def test_explained_variance():
    values, returns = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.5, 2.0, 2.5, 6.0])
    errors = (returns - values).tolist()
    expected = 1 - statistics.pvariance(errors) / statistics.pvariance(returns.tolist())
    assert explained_variance(values, returns) == pytest.approx(expected, abs=1e-12)
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.zeros(4), returns) == pytest.approx(0.0)
    assert explained_variance(values, torch.ones(4)) == 0.0  # nothing to explain
    assert math.isfinite(explained_variance(values, torch.full((4,), 0.1)))


def test_explained_variance_over_processes():
    values, returns = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.5, 2.0, 2.5, 6.0])
    given: list[torch.Tensor] = []
    for part in (slice(0, 1), slice(1, 4)):
        explained_variance(values[part], returns[part], lambda x: given.append(x) or x)
    found = explained_variance(values[:1], returns[:1], lambda x: given[0] + given[1])
    assert found == pytest.approx(explained_variance(values, returns), abs=1e-12)


def test_defaults_are_orz():
    assert Gae() == Gae(gamma=1.0, lam=1.0, whiten=True, bf16=False)
