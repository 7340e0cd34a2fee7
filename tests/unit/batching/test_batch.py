"""From rollouts to micro-batches: no row lost, none counted twice, every position where it belongs."""

import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from stepstack.batching.collate import collate, collate_shared
from stepstack.batching.config import BatchLayout
from stepstack.batching.minibatch import minibatches
from stepstack.batching.pack import partition, plan, sequences
from stepstack.batching.rows import Row, chunk_of, owners
from stepstack.batching.shared import Siblings
from stepstack.models.lm.policy import Policy, recent_tokens
from stepstack.models.lm.value import Value
from stepstack.rl.prompts import PromptStream
from tests import tools

ROWS = tools.rows([(4, 1 + 7 * i % 23) for i in range(100)])


def indices(micros):
    return sorted(row.index for micro in micros for row in micro)


# -- mini-batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 3, 7, 12, 100])
def test_no_row_is_dropped(updates):
    parts = tools.batch(ROWS).minibatches(updates)
    assert sorted(row.index for part in parts for row in part) == list(range(100))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_100_rows_in_12_updates_are_uneven_and_all_used():
    assert Counter(len(part) for part in tools.batch(ROWS).minibatches(12)) == {9: 4, 8: 8}


def test_mini_batches_are_seeded():
    first, again, other = (tools.batch(ROWS, seed).minibatches(4) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_more_updates_than_rollouts_is_an_error():
    with pytest.raises(ValueError, match="12 updates need at least as many rollouts; the batch has 11"):
        tools.batch(ROWS[:11]).minibatches(12)


def test_which_rows_form_a_mini_batch_does_not_depend_on_the_number_of_processes():
    lengths = [len(row) for row in ROWS]
    whole = [{row.index for row in part} for part in tools.batch(ROWS, seed=3).minibatches(4)]
    for processes in (2, 3):
        owner = owners(lengths, chunk_of(100, 4, 3), processes)
        shares = [[row for row in ROWS if owner[row.index] == rank] for rank in range(processes)]
        parts = []
        for share in shares:
            mine = tools.batch(share, seed=3)
            mine.size = 100
            parts.append(mine.minibatches(4))
        assert [{row.index for part in k for row in part} for k in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize(
    ("packs", "updates", "steps", "used"),
    [
        (100, 12, 12, 96),
        (171, 12, 12, 168),
        (12, 12, 12, 12),
        (23, 12, 12, 12),
        (11, 12, 11, 11),
        (100, 1, 1, 100),
        (171, 1, 1, 171),
    ],
)
def test_orz_parity_drops_exactly_what_orz_drops(packs, updates, steps, used):
    rows = tools.rows([(5, 5)] * packs)  # each fills a pack
    parts = plan(tools.batch(rows), updates, BatchLayout(pack=True, max_tokens=10, orz_parity=True))
    assert len(parts) == steps
    assert sum(len(part) for part in parts) == used
    assert max(Counter(indices([micro for part in parts for micro in part])).values()) == 1


def test_orz_parity_annotates_the_packs_that_it_drops(tmp_path):
    """ORZ computes values and whitens over all rollouts, and only then drops packs."""
    run = tools.make_run(tmp_path, critic_updates=3)
    rows = tools.rows([(5, 5)] * 8)
    minibatch = minibatches(run, tools.batch(rows), 3, BatchLayout(pack=True, max_tokens=10, orz_parity=True))
    trained = [row.index for part in minibatch for micro in part.micros for row in micro.rows]
    spare = [row.index for part in minibatch for micro in part.spare for row in micro.rows]
    assert (len(trained), len(spare)) == (6, 2)
    assert sorted(trained + spare) == list(range(8))
    assert sum(part.rows for part in minibatch) == 6


def test_orz_parity_fills_packs_in_arrival_order():
    rows = tools.rows([(1, 5), (1, 3), (1, 5), (1, 3)])
    packs = partition(rows, BatchLayout(pack=True, max_tokens=10, orz_parity=True))
    assert [[row.index for row in pack] for pack in packs] == [[0, 1], [2, 3]]
    packs = partition(rows, BatchLayout(pack=True, max_tokens=8, orz_parity=True))
    assert [[row.index for row in pack] for pack in packs] == [[0], [1], [2], [3]]
    assert len(partition(rows, BatchLayout(pack=True, max_tokens=8))) == 3  # ours looks for room in earlier packs


# -- shares ---------------------------------------------------------------------------------------------------------


def test_owners_balance_tokens_in_every_chunk_and_overall():
    rng = random.Random(0)
    lengths = [rng.randint(1, 100) for _ in range(240)]
    chunks = chunk_of(240, 12, seed=5)
    owner = owners(lengths, chunks, 4)
    assert owner == owners(lengths, chunks, 4)
    for members in ([i for i in range(240) if chunks[i] == c] for c in range(12)):
        loads = [sum(lengths[i] for i in members if owner[i] == p) for p in range(4)]
        assert max(loads) - min(loads) <= max(lengths)
    totals = [sum(n for n, p in zip(lengths, owner, strict=True) if p == rank) for rank in range(4)]
    assert max(totals) < 1.02 * min(totals)


def test_every_process_gets_a_row_where_there_are_enough():
    for size in (4, 5, 9):
        assert set(owners([7] * size, chunk_of(size, 4, 0), 4)) == {0, 1, 2, 3}


# -- micro-batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("limit", [27, 40, 200, 10_000])
def test_micro_batches_hold_every_row_once_within_the_limit(pack, limit):
    layout = BatchLayout(pack=pack, max_tokens=limit)
    micros = partition(ROWS, layout)
    assert indices(micros) == list(range(100))
    for micro in micros:
        assert collate(micro, pack, "cpu").input_ids.numel() <= limit
    assert micros == partition(ROWS[::-1], layout)  # whatever order they arrive in


def test_packing_wastes_less_than_padding():
    packed, padded = (partition(ROWS, BatchLayout(pack=pack, max_tokens=64)) for pack in (True, False))
    tokens = sum(map(len, ROWS))
    assert len(packed) <= 1.1 * tokens / 64 + 1
    assert len(packed) <= len(padded)


# -- shared prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("limit", [27, 40, 200, 10_000])
def test_answers_to_a_prompt_form_sequences_within_the_limit(pack, limit):
    rows = tools.rows([(4, 1 + 7 * i % 23) for i in range(96)], n=8)
    layout = BatchLayout(pack=pack, share_prompts=True, max_tokens=limit)
    micros = sequences(rows, layout)
    assert sorted(row.index for part in micros for one in part for row in one.rows) == list(range(96))
    for part in micros:
        micro = collate_shared(part, pack, "cpu")
        assert micro.input_ids.numel() <= limit
        assert all(len({row.group for row in one.rows}) == 1 for one in part)
        assert micro.work == sum(4 + sum(len(row.ids) for row in one.rows) for one in part)
    parted = sum(len(part) for part in micros)
    assert parted == 12 if limit >= 200 else parted > 12
    assert micros == sequences(rows[::-1], layout)
    with pytest.raises(ValueError, match=r"row \d+ of 27 tokens does not fit layout\.max_tokens=25"):
        sequences(tools.rows([(4, 23)]), BatchLayout(share_prompts=True, max_tokens=25))


def test_what_an_answer_sees_of_a_shared_prompt():
    """Three answers of 2, 1 and 3 tokens to a prompt of 2; a second sequence of 3 tokens, padded."""
    first, second = tools.rows([(2, 2), (2, 1), (2, 3)], n=3), tools.rows([(1, 2)])
    micro = collate_shared([Siblings(tuple(first)), Siblings(tuple(second))], False, "cpu")
    assert micro.position_ids.tolist() == [[0, 1, 2, 3, 2, 2, 3, 4], [0, 1, 2, 1, 1, 1, 1, 1]]
    assert micro.select.tolist() == [1, 2, 1, 1, 5, 6, 8, 9]
    assert micro.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
    ]
    recent = recent_tokens(micro.input_ids, micro.position_ids, micro.select, 3)
    before = [[-1, *row.prompt_ids, *row.ids] for row in first] + [[-1, -1, *second[0].prompt_ids, *second[0].ids]]
    assert recent.tolist() == [ids[place : place + 3] for ids in before for place in range(len(ids) - 3)]
    weighted = replace(first[2], weights=(0.0, 1.0, 0.5))
    micro = collate_shared([Siblings((first[0], weighted, first[1]))], True, "cpu")
    assert micro.select.tolist() == [1, 2, 4, 5, 1]
    assert micro.labels.tolist() == [*first[0].ids, *weighted.ids[1:], *first[1].ids]
    assert micro.weight_N.tolist() == [1.0, 1.0, 1.0, 0.5, 1.0]


def test_rows_of_two_prompts_share_nothing():
    """Rows of supervised training are all of one group."""
    rows = tools.rows([(2, 2), (3, 2), (2, 1)], n=3)
    [micro] = sequences(rows, BatchLayout(share_prompts=True))
    assert [[row.index for row in one.rows] for one in micro] == [[0, 2], [1]]
    with pytest.raises(ValueError, match="rows 0 and 1 have two prompts and cannot share one"):
        Siblings((rows[0], rows[1]))


def test_a_rollout_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"row \d+ of 26 tokens does not fit layout\.max_tokens=25"):
        partition(ROWS, BatchLayout(max_tokens=25))


@pytest.mark.parametrize("pack", [True, False])
def test_select_points_at_the_token_before_each_response_token(pack):
    """Every response token counts, EOS included, whether the response ended or was cut; no prompt token does. Ids say
    nothing: here EOS is also <pad> (0), within prompts and responses."""
    rows = [
        Row(0, (5, 6, 7), (8, 9, 0)),  # ended by EOS == <pad>
        Row(1, (0, 5), (9, 9, 9, 9)),  # cut at the limit, EOS id in the prompt
        Row(2, (4,), (0,)),  # nothing but EOS
    ]
    micro = collate(rows, pack, "cpu")
    flat = micro.input_ids.flatten()
    assert micro.labels.tolist() == [8, 9, 0, 9, 9, 9, 9, 0]
    assert flat[micro.select + 1].tolist() == micro.labels.tolist()
    assert flat[micro.select].tolist() == [7, 8, 9, 5, 9, 9, 9, 4]
    assert micro.lengths == [3, 4, 1]
    assert micro.count == 8
    assert micro.work == 14
    restarts = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1]
    assert micro.position_ids.flatten().tolist() == (restarts if pack else list(range(6)) * 3)


def test_fields_come_back_to_their_rows():
    rows = tools.rows([(2, 3), (4, 1), (1, 5)])
    micro = collate(rows, False, "cpu")
    micro.store("x", torch.arange(9.0))
    assert [row.fields["x"].tolist() for row in rows] == [[0, 1, 2], [3], [4, 5, 6, 7, 8]]
    assert micro.field("x").tolist() == list(range(9))


def test_a_blank_micro_batch_writes_nothing_to_its_rows():
    """It repeats a row of another micro-batch, whose annotation must be that of its own forward."""
    rows = tools.rows([(2, 3)])
    collate(rows, False, "cpu").store("x", torch.ones(3))
    collate(rows, False, "cpu", blank=True).store("x", torch.zeros(3))
    assert rows[0].fields["x"].tolist() == [1.0, 1.0, 1.0]


def test_too_few_rollouts_for_the_processes_is_an_error_on_each_of_them():
    """Also on those that did get one, or they would wait for the others."""
    several = SimpleNamespace(processes=3, rank=0, device="cpu")
    with pytest.raises(ValueError, match="2 rows are too few for 3 processes"):
        minibatches(several, tools.batch(tools.rows([(2, 2)] * 2)), 1, BatchLayout())


# -- where the value of a token is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [True, False])
def test_a_value_is_that_of_the_state_before_its_token(pack):
    value, policy = Value(tools.qwen2()).eval(), Policy(tools.qwen2())
    value.value_head.weight.data.normal_()
    rows = tools.rows([(4, 6), (3, 5)])
    changed = [Row(row.index, row.prompt_ids, (*row.ids[:-1], 1 + row.ids[-1] % 50)) for row in rows]
    micros = [collate(of, pack, "cpu") for of in (rows, changed)]
    with torch.no_grad():
        before, after = (value(m.input_ids, m.position_ids, m.select) for m in micros)
        entropies = [policy(m.input_ids, m.position_ids, m.select, m.labels)[1] for m in micros]
    torch.testing.assert_close(before, after, atol=1e-6, rtol=0)  # the last token changes no value of its own response
    torch.testing.assert_close(*entropies, atol=1e-6, rtol=0)  # nor the distribution that it was drawn from
    first = [Row(row.index, row.prompt_ids, (1 + row.ids[0] % 50, *row.ids[1:])) for row in rows]
    micro = collate(first, pack, "cpu")
    with torch.no_grad():
        moved = value(micro.input_ids, micro.position_ids, micro.select)
    assert [abs(d) > 1e-3 for d in (moved - before).tolist()] == [False, *[True] * 5, False, *[True] * 4]


# -- prompts --------------------------------------------------------------------------------------------------------


def test_prompts_are_a_pure_function_of_seed_and_step():
    of = tools.prompts([3] * 10)
    stream = PromptStream(of, seed=1)
    forward = [stream.take(step, 4) for step in range(12)]
    assert [PromptStream(of, seed=1).take(step, 4) for step in range(12)] == forward
    assert [stream.take(step, 4) for step in reversed(range(12))] == forward[::-1]
    epochs = [[p.problem.index for taken in forward[i : i + 2] for p in taken] for i in range(0, 12, 2)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)  # two whole steps of ten problems, none twice
    assert len({tuple(epoch) for epoch in epochs}) == 6  # ORZ repeats one permutation
    assert {index for epoch in epochs for index in epoch} == set(range(10))
    assert [p.problem.index for p in PromptStream(of, seed=2).take(0, 8)] != epochs[0]


def test_a_step_needs_as_many_prompts_as_it_takes():
    assert len({p.problem.index for p in PromptStream(tools.prompts([3] * 3), seed=0).take(5, 3)}) == 3
    with pytest.raises(ValueError, match=r"may need 4 prompts \(rollout.prompts, .* only 3 training prompts"):
        PromptStream(tools.prompts([3] * 3), seed=0).take(0, 4)
    with pytest.raises(ValueError, match="no training prompts"):
        PromptStream([], seed=0)
