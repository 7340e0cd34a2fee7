"""Rows of chat data in every form that people have, and what is said about those that cannot be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.errors import DataError
from data.sets.chat import read_examples, read_preferences
from stepstack.config import ConfigError
from stepstack.generation.chat import Continuation, Conversation, written_text
from tests.chats import turns

Q = [{"role": "user", "content": "q"}]
A, B = ([{"role": "assistant", "content": text}] for text in "ab")


def file(folder: Path, *rows) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def picture(folder: Path, name: str = "p.png") -> str:
    Image.new("RGB", (4, 4)).save(folder / name)
    return name


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*Q, *A]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{**Q[0], "tool_calls": None}, *A], "images": None, "tools": None},
    ],
)
def test_conversations(row, tmp_path):
    [example] = read_examples(file(tmp_path, row))
    assert isinstance(example, Conversation)
    assert example.messages == (*Q, *A)
    assert (example.first, example.pictures, example.options) == (0, (), {})
    assert example.where.endswith("rows.jsonl line 1")


def test_prompt_and_completion_as_messages_or_as_texts(tmp_path):
    chats = [{"prompt": Q, "completion": A}, {"prompt": "q", "completion": A}, {"prompt": Q, "completion": "a"}]
    *examples, plain = read_examples(file(tmp_path, *chats, {"prompt": "The sky is", "completion": " blue."}))
    assert [(example.messages, example.first) for example in examples] == [((*Q, *A), 1)] * 3
    assert plain == Continuation(plain.where, "The sky is", " blue.")


def test_tools_and_options_of_the_template(tmp_path):
    row = {"messages": [*Q, *A], "tools": '[{"name": "add"}]', "chat_template_kwargs": {"enable_thinking": False}}
    [example] = read_examples(file(tmp_path, row))
    assert example.options == {"tools": [{"name": "add"}], "enable_thinking": False}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "chosen": A, "rejected": B},
        {"chosen": [*Q, *A], "rejected": [*Q, *B]},
        {"prompt": "q", "chosen": [*Q, *A], "rejected": [*Q, *B]},  # UltraFeedback's form
        {"prompt": "q", "chosen": A, "rejected": B},
        {"prompt": Q, "chosen": "a", "rejected": "b"},
    ],
)
def test_pairs(row, tmp_path):
    [pair] = read_preferences(file(tmp_path, row))
    assert (pair.chosen.messages, pair.rejected.messages) == ((*Q, *A), (*Q, *B))
    assert pair.chosen.first == pair.rejected.first == 1


def test_pairs_of_plain_text(tmp_path):
    [pair] = read_preferences(file(tmp_path, {"chosen": "The sky is blue.", "rejected": "The sky is green."}))
    assert pair.chosen == Continuation(pair.where, "The sky is", " blue.")
    assert pair.rejected.completion == " green."


@pytest.mark.parametrize(
    "content",
    ["what?", "<image>what?", [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]],
)
def test_pictures_stand_in_their_placeholders(content, tmp_path):
    row = {"messages": [{"role": "user", "content": content}, *A, *Q, *A], "images": [picture(tmp_path)]}
    [example] = read_examples(file(tmp_path, row))
    kinds = [[part["type"] for part in message["content"]] for message in example.messages]
    assert kinds == [["image", "text"], ["text"], ["text"], ["text"]]
    assert example.messages[0]["content"][0]["image"] is example.pictures[0]
    assert example.pictures[0].image().size == (4, 4)


def test_a_placeholder_in_a_later_turn_gets_no_second_one(tmp_path):
    """TRL adds one before the first question that is plain text (trl#7330)."""
    later = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and this?"}]}
    [example] = read_examples(file(tmp_path, {"messages": [*Q, *A, later, *B], "images": [picture(tmp_path)]}))
    assert [part["type"] for message in example.messages for part in message["content"]].count("image") == 1
    assert example.messages[2]["content"][0]["image"] is example.pictures[0]
    assert written_text(example.messages[0]) == "q"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([1], "must be a map, not list"),
        ({"text": "a"}, "has the keys text: expected"),
        ({"messages": []}, "messages must be a list that is not empty"),
        ({"messages": [*Q, {"role": "bot", "content": "a"}]}, r"messages\[2\].role is 'bot': expected one of system"),
        ({"messages": [*Q, {"role": "assistant"}]}, r"messages\[2\].content must be a text"),
        ({"messages": [*Q, "a"]}, r"messages\[2\] must be a message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}, *A]},
            r"messages\[1\] has a part that is neither",
        ),
        ({"prompt": "q", "completion": ""}, "completion is empty"),
        ({"prompt": Q, "completion": Q}, "completion has no assistant turn"),
        ({"prompt": Q, "chosen": A, "rejected": B}, "a pair of answers, which stage dpo reads"),
        ({"messages": [*Q, *A], "tools": "["}, "key tools is not JSON"),
        ({"messages": [*Q, *A], "images": ["none.png"]}, r"images\[1\]: .*none.png does not exist"),
        ({"messages": [*Q, *A], "images": ["bad.png"]}, r"images\[1\]: .*bad.png is no whole picture"),
        (
            {"messages": [{"role": "user", "content": "<image><image>?"}, *A], "images": ["p.png"]},
            "2 placeholders, but 1 pictures",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, *A]}, "1 placeholders, but 0 pictures"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(row, why, tmp_path):
    picture(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=f"rows.jsonl line 2: {why}"):
        read_examples(file(tmp_path, {"messages": turns("a", "b")}, row))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [*Q, *A]}, "has the keys messages: stage dpo expects"),
        ({"prompt": Q, "chosen": A, "rejected": A}, "chosen and rejected are equal"),
        ({"prompt": Q, "chosen": A, "rejected": []}, "rejected is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "rejected is empty"),
        ({"chosen": [*Q, *A], "rejected": Q}, "rejected has no assistant turn"),
        ({"prompt": "q", "chosen": [*Q, *A], "rejected": "b"}, "one of chosen and rejected is a text"),
    ],
)
def test_a_bad_pair_is_named_by_file_and_line(row, why, tmp_path):
    with pytest.raises(DataError, match=f"rows.jsonl line 1: {why}"):
        read_preferences(file(tmp_path, row))


def test_without_trl_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match="EXTRAS=chat"):
        read_examples(file(tmp_path, {"messages": [*Q, *A]}))
