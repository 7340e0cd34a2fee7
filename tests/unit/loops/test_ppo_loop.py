"""The loop of PPO on a tiny model, with rules that are known prompt by prompt: dynamic sampling, greedy baselines, and
what they log."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from stepstack.config import Save
from stepstack.core.config import AdamW, TrainableConfig
from stepstack.core.run import Run
from stepstack.generation.types import Rollout, Sampling
from stepstack.loops import ppo
from stepstack.models.lm.policy import Policy
from stepstack.records import Score
from stepstack.report import jsonl
from stepstack.rl.config import DynamicSampling, Gae, Grpo, Remax, RolloutConfig
from stepstack.rl.experience import chosen
from stepstack.rl.prompts import PromptStream
from stepstack.rl.roles import Roles
from tests import tools

PROMPTS = tools.prompts([3, 4, 5, 3] * 12)
COUNT, N, STEPS = 4, 3, 4


def has_signal(index: int) -> bool:
    return index % 4 == 0


def some_have_signal(rollouts: Sequence[Rollout]) -> list[Score]:
    return [Score(float(has_signal(r.problem.index) and r.sample == 0)) for r in rollouts]


def trained(folder, *, reward=some_have_signal, most=None, stop_after=None, advantage=None, n=N) -> Run:
    dynamic = None if most is None else DynamicSampling(max_batches=most)
    rollout = RolloutConfig(prompts=COUNT, sampling=Sampling(n=n, max_tokens=5), dynamic_sampling=dynamic)
    cfg = tools.config(
        folder, rollout=rollout, advantage=advantage or Grpo(), steps=STEPS, actor_updates=2, save=Save(every=1)
    )
    run = Run(cfg, stop_after=stop_after)
    actor = run.trainable("actor", Policy(tools.qwen2()), TrainableConfig(optim=AdamW(lr=1e-2)), total_updates=8)
    ppo.train(
        run,
        roles=Roles(actor, None, None),
        generator=tools.generator(tools.qwen2()),
        prompts=PromptStream(PROMPTS, seed=0),
        reward=reward,
        evaluate=dict,
    )
    return run


def rows_of(run: Run) -> list[dict[str, float]]:
    return [row for row in jsonl.read(run.metrics_file) if "reward" in row]


def batches_needed(step: int, most: int) -> tuple[int, int]:
    """(batches of prompts, groups with signal in them) of a step, read off the stream."""
    prompts = PromptStream(PROMPTS, seed=0).take(step, COUNT * most)
    for used in range(1, most + 1):
        found = sum(has_signal(prompt.problem.index) for prompt in prompts[: used * COUNT])
        if found >= COUNT:
            break
    return used, found


@pytest.mark.parametrize("most", [2, 6])
def test_a_step_samples_until_its_batch_has_signal_or_the_bound_is_reached(tmp_path, most):
    rows = rows_of(trained(tmp_path, most=most))
    needed = [batches_needed(step, most) for step in range(STEPS)]
    assert [row["prompts"] for row in rows] == [used * COUNT for used, _ in needed]
    assert [row["frac_zero_std"] for row in rows] == pytest.approx([1 - s / (u * COUNT) for u, s in needed])
    trains = [min(found, COUNT) / (used * COUNT) for used, found in needed]
    assert [row["trained_fraction"] for row in rows] == pytest.approx(trains)
    assert (max(found for _, found in needed) >= COUNT) == (most == 6)


def test_without_it_a_step_has_one_batch(tmp_path):
    rows = rows_of(trained(tmp_path))
    assert {row["prompts"] for row in rows} == {COUNT}
    assert [row["trained_fraction"] for row in rows] == [batches_needed(step, 1)[1] / COUNT for step in range(STEPS)]


def test_stopped_and_gone_on_it_samples_the_same(tmp_path):
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    reference = trained(whole, most=6)
    with pytest.raises(SystemExit):
        trained(halted, most=6, stop_after=2)
    resumed = trained(halted, most=6)
    assert resumed.resumed_from == 2
    for key in ("prompts", "reward", "tokens", "actor/grad_norm", "trained_fraction"):
        assert [row[key] for row in rows_of(resumed)] == [row[key] for row in rows_of(reference)], key
    for a, b in zip(*(run.trainables["actor"].parameters for run in (resumed, reference)), strict=True):
        assert torch.equal(a, b)


def scored(scores):
    rollouts = [tools.rollout(tools.prompt(index, (5,)), s, (9,)) for index in scores for s in range(2)]
    return [(r, Score(scores[r.problem.index][r.sample])) for r in rollouts]


def test_groups_with_signal_are_chosen_first_and_none_is_preferred():
    scores = {index: [1.0, float(index < 6)] for index in range(12)}  # 6 to 11 have signal
    picks = [{r.problem.index for r, _ in chosen(scored(scores), 3, seed)} for seed in range(200)]
    assert all(len(pick) == 3 and min(pick) >= 6 for pick in picks)
    counts = [sum(index in pick for pick in picks) for index in range(6, 12)]
    assert min(counts) > 70  # of 100 expected
    filled = chosen(scored(scores), 8, seed=1)
    assert {*range(6, 12)} < {r.problem.index for r, _ in filled}
    assert [(r.problem.index, r.sample) for r, _ in filled] == sorted((r.problem.index, r.sample) for r, _ in filled)
    assert chosen(scored(scores), 12, seed=3) == scored(scores)


def test_remax_takes_off_the_greedy_score_of_each_prompt(tmp_path, monkeypatch):
    """The rule scores each token, so that greedy and sampled responses differ; one response a prompt suffices."""
    seen = {}

    def length(rollouts):
        for rollout in rollouts:
            seen.setdefault(rollout.problem.index, []).append(sum(rollout.ids))
        return [Score(float(sum(rollout.ids))) for rollout in rollouts]

    learned = []
    learn = ppo.learn
    monkeypatch.setattr(
        ppo, "learn", lambda run, cfg, roles, batch: (learn(run, cfg, roles, batch), learned.append(batch))
    )
    run = trained(tmp_path, reward=length, advantage=Remax(), n=1)
    for row in learned[0].rows:
        sample, greedy = seen[row.group][:2]
        assert row.fields["advantage"].tolist() == [sample - greedy] * len(row.ids)
    assert any(row.fields["advantage"].any() for row in learned[0].rows)
    assert all(math.isfinite(row["reward_greedy"]) for row in rows_of(run))


@pytest.mark.parametrize("advantage", [Gae(), Remax()])
def test_dynamic_sampling_is_refused_where_equal_scores_teach(tmp_path, advantage):
    rollout = RolloutConfig(prompts=COUNT, sampling=Sampling(n=N), dynamic_sampling=DynamicSampling())
    with pytest.raises(ValueError, match="leaves out groups of equal scores"):
        tools.config(tmp_path, rollout=rollout, advantage=advantage)


def test_more_prompts_than_there_are_is_an_error_that_names_the_keys():
    with pytest.raises(ValueError, match=r"a step may need 52 prompts .*max_batches"):
        PromptStream(PROMPTS, seed=0).batches(0, 4, 13)
