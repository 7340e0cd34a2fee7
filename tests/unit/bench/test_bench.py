"""The bench measures what it says: a clock that stands still while judging, and decoding against generate."""

import itertools
import time

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
    for row in rows[:2]:  # of a model without weights that were trained, some of 64 rows end early
        assert 64 <= row["ours"] < 64 * 8
        assert 64 <= row["generate"] < 64 * 8
    assert [(row["ours"], row["generate"]) for row in rows[2:]] == [(64 * 8, 64 * 8)] * 2
