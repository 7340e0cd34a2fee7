"""Chats as rows and pairs: weights, what is left out and what is said about it."""

from __future__ import annotations

import pytest

from data.errors import DataError
from stepstack.batching.chat import preference_pairs, sft_rows
from stepstack.batching.config import ChatConfig
from stepstack.generation.chat import ChatEncoder, Conversation, Preference
from tests import chats


def encoder(name: str = "qwen2_5") -> ChatEncoder:
    tokenizer = chats.tokenizer(name)
    return ChatEncoder(tokenizer, [chats.end(name, tokenizer)])


def conversation(*contents: str, number: int = 1, system: str = "s") -> Conversation:
    return Conversation(f"rows.jsonl line {number}", tuple(chats.turns(*contents, system=system)))


def preference(chosen: str, rejected: str, number: int = 1) -> Preference:
    where = f"rows.jsonl line {number}"
    return Preference(where, conversation("q", chosen, number=number), conversation("q", rejected, number=number))


def test_a_row_begins_to_learn_behind_its_prompt_and_weighs_its_turns():
    of = encoder()
    data = sft_rows([conversation("a", "first", "b", "second"), conversation("a", "only")], of, ChatConfig())
    first, second = data.rows
    assert (first.index, second.index) == (0, 1)
    assert of.tokenizer.decode([first.ids[place] for place in first.learned]) == "first<|im_end|>second<|im_end|>"
    assert first.weight == len("first") + len("second") + 2
    assert second.weights is None
    assert data.where == ["rows.jsonl line 1"] * 2
    assert data.notes(ChatConfig()) == []


def test_too_long_is_left_out_and_counted():
    of = encoder()
    whole = sft_rows([conversation("a", "x" * 9)], of, ChatConfig()).rows[0]
    cfg = ChatConfig(max_tokens=len(whole))
    data = sft_rows([conversation("a", "x" * 9), conversation("a", "x" * 10, number=2)], of, cfg)
    assert data.rows == [whole]
    assert data.notes(cfg) == [
        f"1 of 2 are longer than chat.max_tokens={len(whole)} and left out, the first is rows.jsonl line 2"
    ]
    with pytest.raises(DataError, match=r"all 1 rows are longer than chat.max_tokens=4: raise it"):
        sft_rows([conversation("a", "x")], of, ChatConfig(max_tokens=4))


def test_only_answers_are_cut():
    of = encoder()
    whole = sft_rows([conversation("a", "x" * 9)], of, ChatConfig()).rows[0]
    cfg = ChatConfig(max_tokens=len(whole) - 3, long="cut")
    data = sft_rows([conversation("a", "x" * 9), conversation("a" * 20, "x", number=2)], of, cfg)
    assert [of.tokenizer.decode(row.ids) for row in data.rows] == ["x" * 7]
    assert data.rows[0].prompt_ids == whole.prompt_ids
    assert (data.cut, data.dropped) == (["rows.jsonl line 1"], ["rows.jsonl line 2"])


def test_a_template_that_is_no_prefix_of_itself_makes_a_row_a_turn():
    thought = "<think>\nso\n</think>\n\n"
    data = sft_rows([conversation("a", f"{thought}A", "b", f"{thought}B")], encoder("qwen3"), ChatConfig())
    assert len(data.rows) == 2
    assert data.notes(ChatConfig())[0].startswith("1 conversations are 2 rows")


def test_pairs_have_one_prompt_and_stay_whole():
    of = encoder()
    data = preference_pairs([preference("good", "bad")], of, ChatConfig())
    [pair] = data.rows
    assert pair.chosen.prompt_ids == pair.rejected.prompt_ids
    assert of.tokenizer.decode(pair.chosen.ids) == "good<|im_end|>"
    assert of.tokenizer.decode(pair.rejected.ids) == "bad<|im_end|>"
    cfg = ChatConfig(max_tokens=len(pair.chosen))
    both = [preference("good", "bad"), preference("good", "worse", 2), preference("better", "worse", 3)]
    data = preference_pairs(both, of, cfg)
    assert len(data.rows) == 1
    assert data.dropped == ["rows.jsonl line 2", "rows.jsonl line 3"]


def test_bad_ones_are_named_together():
    with pytest.raises(DataError, match=r"2 bad rows:\nrows.jsonl line 1: .*\nrows.jsonl line 2: "):
        sft_rows([conversation("a"), conversation("a", "", number=2)], encoder(), ChatConfig())
    with pytest.raises(DataError, match="line 1: chosen and rejected are equal"):
        preference_pairs([preference("a", "a")], encoder(), ChatConfig())
    thought = "<think>\nso\n</think>\n\n"
    long = conversation("a", f"{thought}A", "b", f"{thought}B")
    with pytest.raises(DataError, match="make it one turn"):
        preference_pairs([Preference("line 1", long, conversation("a", "B"))], encoder("qwen3"), ChatConfig())
