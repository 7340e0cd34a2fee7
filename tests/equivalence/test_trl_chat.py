"""Tokens and masks of chats against TRL's own preprocessing, by the templates of published models.

TRL marks turns by ``{% generation %}`` tags in templates of its own; here they are found in the published ones. Two
differences are meant. TRL learns all that is between the tags, so with Qwen's templates also the newline behind the end
token, which no model ever samples, and in Qwen2.5's the newline of the header, which is part of the prompt.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from datasets import Dataset

from stepstack.generation.chat import ChatEncoder, Conversation
from tests import chats

DIALOGUES = [
    chats.turns("Hi", "Hello there", "1+1?", "2", system="Be brief."),
    chats.turns("a", "b", "c", "d", "e", " f\n\ng"),
    chats.turns("Grüße 🙂", "“quotes” — and\ttabs"),
]


def encoder(name: str, tokenizer) -> ChatEncoder:
    return ChatEncoder(tokenizer, [chats.end(name, tokenizer)])


def theirs(tokenizer, rows: list[dict], training: str | None, folder) -> list[dict]:
    from trl import SFTConfig, SFTTrainer

    only = training is not None
    args = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, assistant_only_loss=only, max_length=None)
    template = chats.template(training) if training else None
    trainer = SimpleNamespace(completion_only_loss=not only, chat_template=template, _tokenizer=tokenizer)
    prepared = SFTTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, False, None, "train")
    return list(prepared)


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "qwen3"])
def test_sft_of_conversations(name, tmp_path):
    tokenizer = chats.tokenizer(name)
    dialogues = DIALOGUES if name != "qwen3" else DIALOGUES[2:]  # more turns are more texts
    for dialogue, row in zip(
        dialogues,
        theirs(tokenizer, [{"messages": d} for d in dialogues], f"{name}_training", tmp_path),
        strict=True,
    ):
        [text] = encoder(name, tokenizer).encode(Conversation("", tuple(dialogue)))
        learned = [token if learns else -100 for token, learns in zip(text.ids, text.mask, strict=True)]
        ids, labels = row["input_ids"], row["labels"]
        assert ids[: len(text.ids)] == list(text.ids)
        assert tokenizer.decode(ids[len(text.ids) :]) == ("" if name == "llama3" else "\n")
        more = [tokenizer.decode(a) for a, b in zip(labels, learned, strict=False) if a != b]
        assert more == {"llama3": [], "qwen3": []}.get(name, ["\n"] * (len(more)))
        if name == "qwen2_5":
            turns = sum(message["role"] == "assistant" for message in dialogue)
            assert len(more) == 2 * turns - 1  # of each header and behind each turn but the last, which is cut off
        assert all(b in (a, -100) for a, b in zip(labels, learned, strict=False))


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "qwen3"])
def test_sft_of_prompt_and_completion(name, tmp_path):
    tokenizer = chats.tokenizer(name)
    rows = [{"prompt": dialogue[:-1], "completion": dialogue[-1:]} for dialogue in DIALOGUES]
    for dialogue, row in zip(DIALOGUES, theirs(tokenizer, rows, None, tmp_path), strict=True):
        [text] = encoder(name, tokenizer).encode(Conversation("", tuple(dialogue), first=len(dialogue) - 1))
        assert row["input_ids"][: len(text.ids)] == list(text.ids)
        learned = [token if learns else -100 for token, learns in zip(text.ids, text.mask, strict=True)]
        assert row["labels"][: len(learned)] == learned
        assert tokenizer.decode(row["labels"][len(learned) :]) == ("" if name == "llama3" else "\n")


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "qwen3"])
def test_dpo(name, tmp_path):
    from trl import DPOConfig, DPOTrainer

    tokenizer = chats.tokenizer(name)
    rows = [
        {"prompt": d[:-1], "chosen": d[-1:], "rejected": [{"role": "assistant", "content": "No!"}]} for d in DIALOGUES
    ]
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=None)
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    prepared = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, "train")
    behind = tokenizer("" if name == "llama3" else "\n")["input_ids"]
    for row, pair in zip(rows, prepared, strict=True):
        for key in ("chosen", "rejected"):
            messages = (*row["prompt"], *row[key])
            [text] = encoder(name, tokenizer).encode(Conversation("", messages, first=len(row["prompt"])))
            assert pair["prompt_ids"] == list(text.ids[: text.begin])
            assert pair[f"{key}_ids"] == [*text.ids[text.begin :], *behind]
