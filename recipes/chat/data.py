"""Rows and pairs of a run, and the questions that are held out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from data.drawn import dialogues
from data.drawn.dialogues import Dialogues
from data.drawn.splits import SPLITS, Split
from data.sets import chat
from recipes.chat.config import ChatRows, Config
from stepstack.batching.chat import ChatData, preference_pairs, sft_rows
from stepstack.batching.pairs import Pair
from stepstack.batching.rows import Row
from stepstack.generation.chat import ChatEncoder, Continuation, Conversation, Example, Preference, written_text
from stepstack.generation.types import Prompt
from stepstack.harness.training.task_data import hold_out
from stepstack.records import Problem
from stepstack.report.tokens import ShownRow, readable

log = logging.getLogger(__name__)

T = TypeVar("T", Row, Pair)


@dataclass(frozen=True, slots=True)
class Tuning(Generic[T]):
    """Rows, or pairs, to learn from, and those that are watched."""

    train: ChatData[T]
    select: ChatData[T]


def load_rows(cfg: Config, encoder: ChatEncoder) -> Tuning[Row]:
    """Conversations of the stage sft. DataError names bad ones by file and line."""
    splits = examples(cfg)
    return _noted(Tuning(*(sft_rows(splits[name], encoder, cfg.chat) for name in ("train", "select"))), cfg)


def load_pairs(cfg: Config, encoder: ChatEncoder) -> Tuning[Pair]:
    """Pairs of the stage dpo. DataError names bad ones by file and line."""
    splits = preferences(cfg)
    return _noted(Tuning(*(preference_pairs(splits[name], encoder, cfg.chat) for name in ("train", "select"))), cfg)


def _noted(tuning: Tuning[T], cfg: Config) -> Tuning[T]:
    for name, data in (("train", tuning.train), ("select", tuning.select)):
        for note in data.notes(cfg.chat):
            log.warning("%s: %s", name, note)
    return tuning


def examples(cfg: Config) -> dict[Split, list[Example]]:
    """Conversations of each split."""
    match cfg.data:
        case Dialogues() as drawn:
            demonstrations = [_conversation(messages) for messages in dialogues.demonstrations(drawn)]
            right = [[_conversation(d.messages(d.right)) for d in dialogues.dialogues(drawn, s)] for s in SPLITS[1:]]
            return dict(zip(SPLITS, [demonstrations, *right], strict=True))  # type: ignore[list-item]
        case ChatRows() as rows:
            return _held_out(chat.read_examples(rows.sft), rows, "data.sft")


def preferences(cfg: Config) -> dict[Split, list[Preference]]:
    """Pairs of each split."""
    match cfg.data:
        case Dialogues() as drawn:
            return {split: [_preference(*pair) for pair in dialogues.preferences(drawn, split)] for split in SPLITS}
        case ChatRows() as rows:
            return _held_out(chat.read_preferences(rows.dpo), rows, "data.dpo")


def problems(cfg: Config, split: Split) -> list[Problem]:
    """Questions of a split and how the data answers them: of the stage sft where there is one, else the winners."""
    if isinstance(cfg.data, Dialogues):
        return [
            Problem(
                number,
                dialogue.show(),
                dialogue.right,
                {"kind": dialogue.kind, "asked": _conversation(dialogue.messages())},
            )
            for number, dialogue in enumerate(dialogues.dialogues(cfg.data, split))
        ]
    rows = examples(cfg)[split] if cfg.sft is not None else [pair.chosen for pair in preferences(cfg)[split]]
    return [_problem(number, row) for number, row in enumerate(rows)]


def select_prompts(cfg: Config, encoder: ChatEncoder) -> list[Prompt]:
    """Questions that are answered during training too: drawn ones, which are short and can be judged."""
    if not isinstance(cfg.data, Dialogues):
        return []
    return [Prompt(problem, *encoder.open(problem.meta["asked"])) for problem in problems(cfg, "select")]


E = TypeVar("E", Example, Preference)


def _held_out(read: Sequence[E], cfg: ChatRows, source: str) -> dict[Split, list[E]]:
    """Splits by a hash of what is asked; equal questions are in one split."""
    asked = [
        _problem(number, row.chosen if isinstance(row, Preference) else row).text for number, row in enumerate(read)
    ]
    numbered = [
        Problem(number, text, "", {"row": row}) for number, (text, row) in enumerate(zip(asked, read, strict=True))
    ]
    splits = hold_out(numbered, cfg.select, cfg.test, source)
    return {split: [problem.meta["row"] for problem in rows] for split, rows in splits.items()}


def _problem(number: int, example: Example) -> Problem:
    """The last question of an example, as a problem whose gold is the answer that stands there."""
    if isinstance(example, Continuation):
        return Problem(number, example.prompt, example.completion, {"asked": example})
    answers = [place for place, message in enumerate(example.messages) if message["role"] == "assistant"]
    last = answers[-1] if answers else len(example.messages)
    asked = example.messages[:last]
    text = "\n".join(f"{message['role']}: {written_text(message)}" for message in asked)
    gold = (
        written_text(example.messages[last]) or json.dumps(example.messages[last].get("tool_calls")) if answers else ""
    )
    return Problem(
        number, text, gold, {"asked": Conversation(example.where, asked, 0, example.pictures, example.options)}
    )


def _conversation(messages: list[dict[str, str]]) -> Conversation:
    return Conversation("a drawn dialogue", tuple(messages))


def _preference(dialogue: dialogues.Dialogue, better: str, worse: str) -> Preference:
    chosen, rejected = (
        Conversation("a drawn pair", tuple(dialogue.messages(answer)), first=len(dialogue.texts))
        for answer in (better, worse)
    )
    return Preference("a drawn pair", chosen, rejected)


def shown_rows(data: ChatData[Row], encoder: ChatEncoder, count: int) -> Iterator[ShownRow]:
    """The first rows as they are learned."""
    for row, where in zip(data.rows[:count], data.where, strict=False):
        yield _shown(f"sft, {where}", row, encoder)


def shown_pairs(data: ChatData[Pair], encoder: ChatEncoder, count: int) -> Iterator[ShownRow]:
    """The first pairs, winner and loser one below the other."""
    for pair, where in zip(data.rows[:count], data.where, strict=False):
        yield _shown(f"dpo, {where}, chosen", pair.chosen, encoder)
        yield _shown(f"dpo, {where}, rejected", pair.rejected, encoder)


def _shown(title: str, row: Row, encoder: ChatEncoder) -> ShownRow:
    learned = set(row.learned)
    marks = [*(False for _ in row.prompt_ids), *(place in learned for place in range(len(row.ids)))]
    return ShownRow(title, tuple(readable(encoder.decode, [*row.prompt_ids, *row.ids], marks)))


def prepare(cfg: Config) -> str:
    """``make data``: rows are read where they are; returns a line to print."""
    match cfg.data:
        case Dialogues():
            return f"{cfg.name}: the data (dialogues) is drawn while training; there is nothing to prepare"
        case ChatRows():
            counts = []
            if cfg.sft is not None:
                counts.append(f"{sum(map(len, examples(cfg).values()))} conversations")
            if cfg.dpo is not None:
                counts.append(f"{sum(map(len, preferences(cfg).values()))} pairs")
            return f"{cfg.name}: {' and '.join(counts)} can be read; there is nothing to prepare (--show 3 shows some)"
