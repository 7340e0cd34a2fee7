"""The bench measures what it says: a clock that stands still while judging, and decoding against generate."""

import itertools
import time

import pytest
import torch
from torch.nn import functional

from evals.bench import rl
from recipes.orz import model
from recipes.protocol import load_config
from stepstack.models.lm import tiny


def test_the_clock_stands_still_while_the_contestant_is_judged():
    race = rl.Race()

    def slow() -> float:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        return 0.8

    assert race.judge(lambda: 0.1) == 0.1
    race.judge(slow)
    race.judge(lambda: 0.9)
    result = race.result()
    assert [accuracy for _, accuracy in result["curve"]] == [0.1, 0.8, 0.9]
    assert result["seconds"] == result["curve"][1][0]  # the first at the goal
    assert result["curve"][2][0] < 0.3


def test_a_race_that_is_not_won_has_no_time():
    race = rl.Race()
    race.judge(lambda: rl.GOAL - 0.01)
    assert race.result()["seconds"] is None


def test_operations_are_counted_but_for_those_of_the_judge():
    """Matrix products and attention, forward and backward."""
    square, heads = torch.ones(8, 8), torch.ones(2, 4, 16, 24, requires_grad=True)
    with rl.counting() as counter:
        race = rl.Race(counter)
        square @ square
        torch.zeros(8, 8).addmm_(square, square)
        race.judge(lambda: float((square @ square)[0, 0]))
        attention = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        race.judge(lambda: 0.1)
        assert race.flops == 2 * 2 * 8**3 + 2 * (2 * 2 * 4 * 16 * 16 * 24)
        attention.sum().backward()
        race.judge(lambda: 0.1)
    assert race.result()["flops"] == 2 * 2 * 8**3 + (2 + 5) * (2 * 2 * 4 * 16 * 16 * 24)


def test_a_count_of_another_race_is_refused():
    races = iter([{"steps": 8}, {"steps": 9, "flops": 1}])
    with pytest.raises(RuntimeError, match="9 steps where operations were counted, 8 before"):
        rl.raced(lambda race, folder: next(races))


def test_decoding_is_measured_for_both(tmp_path, monkeypatch):
    """Equally long rows have all tokens that they may have, in both engines: a rate times its seconds counts them."""
    cfg = load_config("orz-tiny", ["data.test=64", "data.train=8", "data.select=1", "rollout.sampling.max_tokens=8"])
    lm, tokenizer = model.untrained(cfg.model, seed=0)
    lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(rl.STOPS[0]) == len(tokenizer) - 2  # one token: an EOS id for the peer
    assert rl.STOPS[0] in tiny.PIECES
    clock = itertools.count()
    monkeypatch.setattr(rl.time, "process_time", lambda: float(next(clock)))
    rows = rl.decoding(cfg, tmp_path, rounds=1)
    shapes = ["64 prompts", "8 prompts x 8", "64 prompts, equally long", "8 prompts x 8, equally long"]
    assert [row["shape"] for row in rows] == shapes
    parameters = sum(weight.numel() for weight in lm.parameters())
    for row in rows:
        assert 2 * parameters < row["ours_flops"] < row["generate_flops"] < 20 * parameters
    for row in rows[:2]:  # of a model without weights that were trained, some of 64 rows end early
        assert 64 <= row["ours"] < 64 * 8
        assert 64 <= row["generate"] < 64 * 8
    assert [(row["ours"], row["generate"]) for row in rows[2:]] == [(64 * 8, 64 * 8)] * 2
