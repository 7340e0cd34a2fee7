"""What is drawn: the distribution, the cuts, and that a rollout's randomness belongs to it alone."""

import pytest
import torch
from pydantic import ValidationError

from stepstack.generation.hf import sample, without_repetition
from stepstack.generation.types import EngineError, Repetition, Sampling, rollout_seed
from stepstack.generation.vllm.request import request
from stepstack.models.lm.policy import MIN_LOGIT
from stepstack.rl.config import RolloutConfig
from tests import tools


def test_draws_follow_the_softmax():
    """Chi-square over 64,000 stratified-free draws; 15 degrees of freedom: 37.7 is the 0.1% point."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, generator=generator).expand(64_000, 16)
    noise = torch.rand(64_000, generator=generator, dtype=torch.float64)
    for temperature in (1.0, 0.7):
        token, logp = sample(logits, noise, Sampling(temperature=temperature))
        expected = (logits[0] / temperature).softmax(-1)
        count = torch.bincount(token, minlength=16)
        assert ((count - 64_000 * expected) ** 2 / (64_000 * expected)).sum() < 37.7
        torch.testing.assert_close(logp, expected.log()[token])


def test_the_sampler_itself_follows_the_softmax():
    """The same through generate(): first tokens of 4,096 samples of one prompt, 12 tokens that matter."""
    lm = tools.qwen2(12)
    found = tools.sampled(tools.generator(lm, batch=4096), [tools.prompt(3, (5, 6, 7))], Sampling(n=4096, max_tokens=1))
    with torch.no_grad():
        expected = lm(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    count = torch.bincount(torch.tensor([r.ids[0] for r in found.values()]), minlength=12)
    likely = expected * 4096 >= 5
    chi = ((count - 4096 * expected) ** 2 / (4096 * expected))[likely].sum()
    assert likely.sum() >= 3
    assert chi < 31.3  # 11 degrees of freedom, 0.1%


@pytest.mark.parametrize("noise", [0.0, 1 - 2**-53])
def test_the_ends_of_the_noise_draw_tokens_that_can_be_drawn(noise):
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf")]])
    token, logp = sample(logits, torch.tensor([noise], dtype=torch.float64), Sampling())
    assert token.item() == (1 if noise == 0.0 else 2)
    assert torch.isfinite(logp).all()


def test_greedy_takes_the_likeliest_whatever_the_noise():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    token, logp = sample(logits, torch.rand(50), Sampling(temperature=0.0))
    assert torch.equal(token, logits.argmax(-1))
    torch.testing.assert_close(logp, logits.log_softmax(-1).max(-1).values)


def test_greedy_generation_equals_transformers():
    lm, of = tools.qwen2(), tools.prompts([4, 4])
    lm.generation_config.eos_token_id = lm.config.eos_token_id = None
    found = tools.sampled(tools.generator(lm), of, Sampling(temperature=0.0, max_tokens=20))
    ids = torch.tensor([p.ids for p in of])
    theirs = lm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
    assert [list(found[i, 0].ids) for i in range(2)] == theirs[:, 4:].tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "allowed"),
    [
        (1, 1.0, {0}),
        (3, 1.0, {0, 1, 2}),
        (-1, 0.5, {0}),
        (-1, 0.65, {0, 1}),
        (-1, 0.95, {0, 1, 2, 3}),
        (2, 0.95, {0, 1}),
    ],
)
def test_cuts_by_brute_force(top_k, top_p, allowed):
    """Probabilities .5 .25 .15 .06 .04, shuffled: the smallest set that reaches top_p, at most top_k tokens."""
    p, order = torch.tensor([0.5, 0.25, 0.15, 0.06, 0.04]), torch.tensor([3, 0, 4, 1, 2])
    logits = p[order].log().expand(2000, 5)
    token, logp = sample(logits, torch.linspace(0, 0.9999, 2000).double(), Sampling(top_k=top_k, top_p=top_p))
    assert set(order[token].tolist()) == allowed
    kept = p[sorted(allowed)].sum()
    torch.testing.assert_close(logp, (p / kept).log()[order[token]], atol=1e-5, rtol=0)
    for index in allowed:  # and in the right proportion
        assert (order[token] == index).float().mean().item() == pytest.approx((p[index] / kept).item(), abs=0.002)


@pytest.mark.parametrize("make", [tools.qwen2, tools.gpt2])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_a_rollout_depends_on_neither_batch_nor_neighbours(make, batch):
    lm, of = make(), tools.prompts([3, 9, 1, 17, 5, 5])
    sampling = Sampling(n=4, max_tokens=24, seed=3)
    whole = tools.sampled(tools.generator(lm, batch=256), of, sampling)
    found = tools.sampled(tools.generator(lm, batch=batch), of[::-1], sampling)
    assert {k: r.ids for k, r in found.items()} == {k: r.ids for k, r in whole.items()}
    worst = max(abs(a - b) for k in whole for a, b in zip(whole[k].logprobs, found[k].logprobs, strict=True))
    assert worst < 1e-5


def test_a_rollout_does_not_depend_on_n():
    lm, of = tools.qwen2(), tools.prompts([3, 9])
    many = tools.sampled(tools.generator(lm), of, Sampling(n=6, max_tokens=16))
    few = tools.sampled(tools.generator(lm), of, Sampling(n=2, max_tokens=16))
    assert {k: r.ids for k, r in few.items()} == {k: many[k].ids for k in few}


def test_seeds():
    lm, of = tools.qwen2(), tools.prompts([3, 9])
    first, again, other = (
        tools.sampled(tools.generator(lm), of, Sampling(n=3, max_tokens=16, seed=seed)) for seed in (5, 5, 6)
    )
    assert first == again
    assert {k: r.ids for k, r in first.items()} != {k: r.ids for k, r in other.items()}
    assert len({r.ids for r in first.values()}) == 6  # samples of one prompt differ too


def test_row_seeds_do_not_collide():
    seeds = {rollout_seed(s, i, k) for s in range(8) for i in range(64) for k in range(64)}
    assert len(seeds) == 8 * 64 * 64
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_groups_are_whole_and_ordered():
    groups = list(
        tools.generator(tools.qwen2(), batch=4).generate(tools.prompts([3, 9, 2]), Sampling(n=3, max_tokens=4))
    )
    assert sorted(g.prompt.problem.index for g in groups) == [0, 1, 2]
    for group in groups:
        assert [r.sample for r in group.rollouts] == [0, 1, 2]
        assert all(r.prompt is group.prompt for r in group.rollouts)


# -- repetition-aware sampling --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recent", "cfg", "banned"),
    [
        ([3, 1, 2, 4, 5, 6, 7, 8, 9, 0], Repetition(), None),  # once, which is itself
        ([0, 1, 2, 4, 5, 6, 7, 8, 9, 0], Repetition(), 0),  # twice in ten
        ([0, 5, 1, 2, 4, 5, 6, 7, 8, 9, 0], Repetition(), None),  # the first of the two is the eleventh
        ([5, 5, 5, 5, 5, 5, 5, 5, 5, 0], Repetition(), None),  # others may come as often as they like
        ([-1, 0, 2, 4, 5, 6, 7, 8, 9, 0], Repetition(), None),  # only nine tokens so far
        ([1, 0, 2, 0, 0], Repetition(window=4, threshold=0.5), 0),
        ([0, 1, 0, 2, 0], Repetition(window=4, threshold=0.5), None),
        ([1, 1], Repetition(window=2, threshold=0.0), 1),
    ],
)
def test_repetition_by_a_table(recent, cfg, banned):
    logits = torch.arange(10.0)[None]
    found = without_repetition(logits, torch.tensor([recent]), cfg)[0]
    want = [MIN_LOGIT if place == banned else float(place) for place in range(10)]
    assert torch.equal(found, torch.tensor(want))


def test_repetition_equals_the_released_processor_on_random_tokens():
    """The rule as it was read in Step-Audio's tts.py, row by row."""
    rng = torch.Generator().manual_seed(0)
    recent, logits = torch.randint(0, 8, (200, 10), generator=rng), torch.randn(200, 8, generator=rng)
    found = without_repetition(logits, recent, Repetition())
    for row, window in enumerate(recent.tolist()):
        often = sum(token == window[-1] for token in window) / 10 > 0.1
        want = logits[row].clone()
        want[window[-1]] = MIN_LOGIT if often else want[window[-1]]
        assert torch.equal(found[row], want)


@pytest.mark.parametrize("decoder", ["auto", "module"])
def test_rollouts_repeat_nothing_at_once_that_came_before(decoder):
    """Two tokens in a row only where the first of them was new to the ten; without it the model does so all the time.
    Rows that leave the batch take their windows with them."""
    lm, of = tools.qwen2(6), tools.prompts([3, 9, 1, 17], vocab=6)
    generator = tools.generator(lm, decoder=decoder)
    counts = {}
    for repetition in (None, Repetition()):
        found = tools.sampled(generator, of, Sampling(n=3, max_tokens=40, temperature=0.7, repetition=repetition))
        counts[repetition] = 0
        for rollout in found.values():
            ids = (*rollout.prompt.ids, *rollout.ids)
            for place in range(max(10, len(rollout.prompt.ids)), len(ids)):
                window = ids[place - 10 : place]
                counts[repetition] += window.count(window[-1]) > 1 and ids[place] == window[-1]
    assert counts[None] > 20
    assert counts[Repetition()] == 0


def test_repetition_and_log_probabilities():
    """What is reported is the log-probability of what was sampled from, which is why training refuses it."""
    lm, of = tools.qwen2(6), tools.prompts([12], vocab=6)
    [rollout] = tools.sampled(
        tools.generator(lm), of, Sampling(max_tokens=30, repetition=Repetition(), seed=4)
    ).values()
    ids = torch.tensor([[*rollout.prompt.ids, *rollout.ids]])
    with torch.no_grad():
        logits = lm(ids).logits[0, 11:-1]
    recent = torch.stack([ids[0, k - 10 : k] for k in range(12, ids.shape[1])])
    wanted = without_repetition(logits, recent, Repetition()).log_softmax(-1)
    sampled = torch.tensor(rollout.logprobs)
    torch.testing.assert_close(sampled, wanted.gather(1, ids[0, 12:, None])[:, 0], atol=1e-5, rtol=0)
    plain = logits.log_softmax(-1).gather(1, ids[0, 12:, None])[:, 0]
    assert (sampled - plain).abs().max() > 0.1


def test_repetition_is_refused_where_it_would_be_lost(tmp_path):
    sampling = Sampling(n=2, repetition=Repetition())
    with pytest.raises((ValueError, ValidationError), match=r"rollout.sampling.repetition forbids tokens"):
        tools.config(tmp_path, rollout=RolloutConfig(prompts=4, sampling=sampling))
    with pytest.raises(EngineError, match="vLLM has no repetition-aware sampling"):
        request(tools.prompt(0, (5,)), 0, sampling, 100)
