"""The ranker finds the longest responses of prompts that it never saw, and comes back from its files as it was."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from data.drawn.chains import Chains, draw, show, worked_solution
from data.drawn.splits import split_of
from recipes.orz.prompt import render
from stepstack.config import ConfigError
from stepstack.models.lm import tiny
from stepstack.rl.ranker import LengthRanker, RankerConfig, read_lengths, recall
from tests import tools

TOKENIZER = tiny.tokenizer()


def base(seed: int):
    return tiny.qwen2(len(TOKENIZER), hidden=48, layers=2, intermediate=96, seed=seed)


def examples(split: str, count: int, seed: int) -> tuple[list[list[int]], list[int]]:
    """Prompts of orz-tiny's sums, and the tokens of a worked solution, which has a line for each term but the first."""
    rng, found = random.Random(f"{split}-{seed}"), {}
    while len(found) < count:
        terms = draw(rng, Chains())
        text = show(terms)
        if split_of(text) == split:
            found[text] = len(TOKENIZER(worked_solution(terms, rng, 0.0)).input_ids)
    return [TOKENIZER(render(text, "short")).input_ids for text in found], list(found.values())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_recalls_the_longest_fifth_of_prompts_that_are_held_out(seed):
    """The length of the prompt alone does not: what a partial sum has for digits decides too."""
    ranker = LengthRanker(base(seed), seed)
    prompts, lengths = examples("train", 1000, seed)
    errors = ranker.fit(prompts, lengths, RankerConfig(steps=300, lr=3e-3, seed=seed))
    assert sum(errors[-10:]) < 0.3 * sum(errors[:10])
    prompts, lengths = examples("test", 300, seed)
    found = recall(ranker.estimate(prompts), lengths)
    by_prompt = recall([float(len(prompt)) for prompt in prompts], lengths)
    assert found >= max(0.80, by_prompt + 0.1)
    assert recall(LengthRanker(base(seed), seed).estimate(prompts), lengths) < 0.6  # untrained


def test_the_base_model_is_left_as_it_is():
    lm = base(0)
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    LengthRanker(lm).fit([[5, 6], [7]], [3, 9], RankerConfig(steps=2))
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())


def test_it_comes_back_as_it_was_and_on_no_other_model(tmp_path):
    ranker = LengthRanker(base(0))
    ranker.fit([[5, 6, 7], [7, 8]], [3, 90], RankerConfig(steps=5))
    place = tmp_path / "ranker"
    LengthRanker(base(3)).save(place)
    ranker.save(place)
    assert [path.name for path in tmp_path.iterdir()] == ["ranker"]
    prompts = [[9, 10], [11], [5, 6, 7]]
    assert LengthRanker.load(place, base(1)).estimate(prompts) == ranker.estimate(prompts)
    with pytest.raises(ConfigError, match="a ranker of another model"):
        LengthRanker.load(place, tools.qwen2(len(TOKENIZER)))
    with pytest.raises(ConfigError, match="holds no ranker: `stepstack ranker"):
        LengthRanker.load(tmp_path / "none", base(1))


@pytest.mark.parametrize(("prompts", "lengths"), [([], []), ([[1]], []), ([[1]], [0]), ([[1]], [math.inf])])
def test_pairs_that_are_none_are_refused(prompts, lengths):
    with pytest.raises(ConfigError, match="give pairs"):
        LengthRanker(base(0)).fit(prompts, lengths, RankerConfig())


def test_recall_by_hand():
    lengths = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert recall(lengths, lengths) == 1.0
    assert recall([10, 2, 3, 4, 5, 6, 7, 8, 9, 1], lengths) == 0.5  # the longest two: one is right
    assert recall([-length for length in lengths], lengths) == 0.0
    assert recall([1, 5, 5, 0, 0], [1, 7, 7, 7, 1], share=0.2) == 1.0  # any of those of equal length


def test_an_error_that_does_not_stay_finite_is_no_ranker():
    lm = base(0)
    with torch.no_grad():
        next(lm.parameters()).fill_(math.nan)
    with pytest.raises(ConfigError, match=r"the ranker's error is nan after 1 updates: lower lr"):
        LengthRanker(lm).fit([[5, 6], [7]], [3, 9], RankerConfig())


def test_lengths_of_a_run(tmp_path):
    """A step that was sampled again after a kill counts once."""
    file = tmp_path / "stream" / "lengths.jsonl"
    file.parent.mkdir()
    rows = [{"step": step, "problem": 7, "tokens": tokens} for step, tokens in ((0, [4]), (0, [4]), (1, [10]))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_lengths(tmp_path, late_share=1.0) == {7: 7.0}
    assert read_lengths(tmp_path, late_share=0.5) == {7: 10.0}
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match="give one above 0, at most 1"):
            read_lengths(tmp_path, share)
    for wrong in ({"step": 0, "problem": 7}, {"step": 0, "problem": 7, "tokens": []}, {"step": 0, "problem": "x"}):
        file.write_text(json.dumps(rows[0]) + "\n" + json.dumps(wrong) + "\n")
        with pytest.raises(ConfigError, match=r"lengths\.jsonl:2: no row of step, problem and tokens"):
            read_lengths(tmp_path, 1.0)
    with pytest.raises(ConfigError, match="train with stream: first"):
        read_lengths(tmp_path / "none", 1.0)
