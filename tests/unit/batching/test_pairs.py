"""Pairs of answers: never split, on processes alike, and their reference kept in a file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image

from stepstack.batching.collate import collate
from stepstack.batching.config import BatchLayout
from stepstack.batching.pairs import Pair, pair_minibatch
from stepstack.batching.reference import cached, pictures_digest
from stepstack.batching.stream import RowStream
from stepstack.config import ConfigError
from stepstack.core.config import TrainableConfig
from stepstack.models.lm.policy import Policy
from tests import tools

SHAPES = [(3, 4), (3, 6), (2, 5), (2, 2), (5, 5), (5, 1), (4, 9), (4, 3), (2, 7), (2, 8)]


def pairs() -> list[Pair]:
    rows = tools.rows(SHAPES)
    return [
        Pair(i, won, replace(lost, prompt_ids=won.prompt_ids))
        for i, (won, lost) in enumerate(zip(rows[::2], rows[1::2], strict=True))
    ]


class Rank:
    """One of several processes that knows how many micro-batches the others have."""

    device = torch.device("cpu")

    def __init__(self, rank: int, processes: int, most: int = 0):
        self.rank, self.processes, self.most = rank, processes, most

    def max(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x, torch.tensor([float(self.most)]))


@pytest.mark.parametrize("layout", [BatchLayout(max_tokens=48), BatchLayout(max_tokens=48, pack=True)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_pair_is_whole_in_one_micro_batch_of_one_process(layout, processes):
    seen: Counter[int] = Counter()
    for rank in range(processes):
        batch = pair_minibatch(Rank(rank, processes), pairs(), layout)
        assert (batch.pairs, batch.tokens) == (5, sum(len(pair.chosen.ids) for pair in pairs()))
        for micro in batch.micros:
            seen.update(pair.index for pair in micro.pairs)
            assert [row.ids for row in micro.tokens.rows[::2]] == [pair.chosen.ids for pair in micro.pairs]
            assert [row.ids for row in micro.tokens.rows[1::2]] == [pair.rejected.ids for pair in micro.pairs]
            assert micro.tokens.input_ids.numel() <= layout.max_tokens
    assert seen == Counter(range(5))


def test_a_process_with_fewer_micro_batches_gets_blank_ones():
    micros = pair_minibatch(Rank(0, 1, most=4), pairs(), BatchLayout(max_tokens=10_000)).micros
    assert [micro.blank for micro in micros] == [False, True, True, True]
    with pytest.raises(ValueError, match="5 pairs are too few for 6 processes"):
        pair_minibatch(Rank(0, 6), pairs(), BatchLayout())
    with pytest.raises(ValueError, match=r"pair \d of 26 tokens does not fit layout\.max_tokens=20"):
        pair_minibatch(Rank(0, 1), pairs(), BatchLayout(max_tokens=20))


def test_scores_are_sums_by_row_and_weight():
    [pair] = pairs()[:1]
    pair = replace(pair, chosen=replace(pair.chosen, weights=(0.0, 2.0, 0.0, 0.5)))
    [micro] = pair_minibatch(Rank(0, 1), [pair], BatchLayout()).micros
    assert micro.tokens.labels.tolist() == [pair.chosen.ids[1], pair.chosen.ids[3], *pair.rejected.ids]
    scores = micro.scores(-torch.arange(1.0, 9.0))
    assert scores.chosen_B.tolist() == [-(1 * 2 + 2 * 0.5)]
    assert scores.rejected_B.tolist() == [-float(sum(range(3, 9)))]
    assert (scores.chosen_tokens_B.tolist(), scores.rejected_tokens_B.tolist()) == ([2.5], [6.0])


def test_only_learned_tokens_are_selected():
    row = replace(tools.rows([(3, 4)])[0], weights=(0.0, 1.0, 0.0, 0.25))
    other = tools.rows([(2, 2)])[0]
    for pack, places in ((False, [3, 5, 8, 9]), (True, [3, 5, 8, 9])):
        micro = collate([row, other], pack, "cpu")
        assert micro.select.tolist() == places
        assert micro.labels.tolist() == [row.ids[1], row.ids[3], *other.ids]
        assert micro.weight_N.tolist() == [1.0, 0.25, 1.0, 1.0]
        assert (micro.count, micro.lengths, micro.work) == (4, [2, 2], 11)
    assert (row.weight, other.weight) == (1.25, 2.0)


@pytest.mark.parametrize("pack", [False, True])
def test_a_shared_prompt_is_there_once_and_neither_answer_sees_the_other(pack):
    both = pairs()[:2]
    layout = BatchLayout(share_prompts=True, pack=pack)
    [micro] = pair_minibatch(Rank(0, 1), both, layout).micros
    tokens, lengths = micro.tokens, [3 + 4 + 6, 2 + 5 + 2]
    assert tokens.work == sum(lengths)
    assert tokens.labels.tolist() == [
        *both[0].chosen.ids,
        *both[0].rejected.ids,
        *both[1].chosen.ids,
        *both[1].rejected.ids,
    ]
    flat, seen = tokens.input_ids.flatten(), tokens.mask[:, 0]
    place = 0
    for row in tokens.rows:
        start = int(tokens.select[place])
        assert flat[start] == row.prompt_ids[-1]  # the first token of each answer is told by the prompt's last
        place += len(row.ids)
    matrix = seen[0]
    assert matrix[6, :7].all()  # the winner's last token sees prompt and winner
    assert matrix[12, :13].tolist() == [True] * 3 + [False] * 4 + [True] * 6  # the loser's last: not the winner
    assert tokens.position_ids[0, :13].tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7, 8]
    if pack:
        assert not matrix[13:, :13].any()  # the second pair sees nothing of the first
    else:
        assert seen[1].diagonal().sum() == len(seen[1])  # padding too, or its row would be NaN


def test_a_pair_of_two_prompts_shares_nothing():
    [first, _, other, *_] = pairs()
    wrong = replace(first, rejected=other.rejected)
    with pytest.raises(ValueError, match="two prompts and cannot share one"):
        pair_minibatch(Rank(0, 1), [wrong], BatchLayout(share_prompts=True))


# -- the stream -----------------------------------------------------------------------------------------------------


def test_the_stream_shows_each_row_once_an_epoch_and_needs_no_cursor():
    stream = RowStream(pairs(), batch=3, seed=7)
    seen = [pair.chosen.ids for step in range(5) for pair in stream.take(step)]
    whole = [pair.chosen.ids for pair in pairs()]
    for epoch in range(3):
        assert Counter(seen[epoch * 5 : epoch * 5 + 5]) == Counter(whole)
    assert [pair.index for pair in stream.take(4)] == [0, 1, 2]
    again, other = (
        [pair.chosen.ids for step in range(5) for pair in RowStream(pairs(), batch=3, seed=seed).take(step)]
        for seed in (7, 8)
    )
    assert again == seen != other
    assert seen[:5] != seen[5:10]
    with pytest.raises(ValueError, match="no training rows"):
        RowStream([], batch=3, seed=0)


# -- the reference --------------------------------------------------------------------------------------------------


def policy(tmp_path, seed=0):
    run = tools.make_run(tmp_path)
    return run, run.trainable("policy", Policy(tools.qwen2(seed=seed)), TrainableConfig(), 1)


def test_the_reference_is_what_the_start_says_and_is_computed_once(tmp_path):
    run, start = policy(tmp_path / "a")
    file = tmp_path / "reference.json"
    with_reference = cached(run, start, pairs(), BatchLayout(max_tokens=60), file)
    for pair in with_reference:
        [micro] = pair_minibatch(run, [replace(pair, reference=None)], BatchLayout()).micros
        with torch.no_grad():
            alone = micro.scores(start.module(**micro.tokens.inputs())[0])
        assert pair.reference == pytest.approx((alone.chosen_B.item(), alone.rejected_B.item()), abs=1e-4)
        with pytest.raises(ValueError, match="pairs without the reference"):
            micro.reference()
    written = json.loads(file.read_text())
    written["pairs"][0] = [-1.0, -2.0]
    file.write_text(json.dumps(written))
    assert cached(run, start, pairs(), BatchLayout(), file)[0].reference == (-1.0, -2.0)


def test_a_reference_of_other_weights_or_rows_is_refused(tmp_path):
    run, start = policy(tmp_path / "a")
    file = tmp_path / "reference.json"
    cached(run, start, pairs(), BatchLayout(), file)
    with pytest.raises(ConfigError, match="for other weights: delete it"):
        cached(*policy(tmp_path / "b", seed=1), pairs(), BatchLayout(), file)
    for changed in (pairs()[1:], [replace(pair, chosen=pair.rejected) for pair in pairs()]):
        with pytest.raises(ConfigError, match="for other rows: delete it"):
            cached(run, start, changed, BatchLayout(), file)
    [first, *rest] = pairs()
    weighed = replace(first, chosen=replace(first.chosen, weights=(1.0, 1.0, 0.0, 1.0)))
    with pytest.raises(ConfigError, match="for other rows"):
        cached(run, start, [weighed, *rest], BatchLayout(), file)


@dataclass(frozen=True)
class Plain:
    colour: str

    def image(self) -> Image.Image:
        return Image.new("RGB", (4, 4), self.colour)


def test_pictures_count_by_their_pixels():
    def of(*colours: str) -> str:
        shown = [replace(pairs()[0], chosen=replace(pairs()[0].chosen, pictures=(Plain(c),))) for c in colours]
        return pictures_digest(shown)

    assert of("red", "blue") == of("#ff0000", "blue")
    assert len({of("red", "blue"), of("blue", "red"), of("red", "red"), pictures_digest(pairs())}) == 4
