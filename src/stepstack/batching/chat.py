"""Chats to rows and pairs: every one is checked, those that are too long are left out and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from data.errors import BadRow, DataError, refuse
from stepstack.batching.config import ChatConfig
from stepstack.batching.pairs import Pair
from stepstack.batching.rows import Row
from stepstack.generation.chat import ChatEncoder, Example, Learnt, Preference

T = TypeVar("T", Row, Pair)
E = TypeVar("E", Example, Preference)


@dataclass
class ChatData(Generic[T]):
    """Rows or pairs, in order, the place in its source of each, and what became of the rest."""

    rows: list[T] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    examples: int = 0
    dropped: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    taken_back: list[str] = field(default_factory=list)

    def notes(self, cfg: ChatConfig) -> list[str]:
        """Sentences on what a reader would not expect of the data."""
        notes = []
        if len(self.rows) + len(self.dropped) > self.examples:
            notes.append(
                f"{self.examples} conversations are {len(self.rows)} rows, since the chat template writes a turn "
                "otherwise once others follow, so each turn is a row"
            )
        if self.dropped:
            notes.append(
                f"{len(self.dropped)} of {self.examples} are longer than chat.max_tokens={cfg.max_tokens} and left "
                f"out, the first is {self.dropped[0]}"
            )
        if self.cut:
            notes.append(f"{len(self.cut)} answers are cut at chat.max_tokens={cfg.max_tokens}, first {self.cut[0]}")
        if self.taken_back:
            notes.append(
                f"the chat template ends an open prompt in {self.taken_back[0]!r}, which a finished turn does not "
                "have: a model is asked with it and trained without"
            )
        return notes


def sft_rows(examples: Sequence[Example], encoder: ChatEncoder, cfg: ChatConfig) -> ChatData[Row]:
    """Conversations as rows. DataError names up to 20 bad ones by their place, or says that none fits."""
    return _load(examples, cfg, lambda example, data: _rows(example, encoder, cfg, data))


def preference_pairs(preferences: Sequence[Preference], encoder: ChatEncoder, cfg: ChatConfig) -> ChatData[Pair]:
    """Preferences as pairs; one of which an answer is too long is left out whole. DataError as in ``sft_rows``."""
    return _load(preferences, cfg, lambda preference, data: _pairs(preference, encoder, cfg, data))


def _load(examples: Sequence[E], cfg: ChatConfig, parse: Callable[[E, ChatData[T]], list[T]]) -> ChatData[T]:
    data: ChatData[T] = ChatData(examples=len(examples))
    errors = []
    for example in examples:
        try:
            rows = parse(example, data)
        except BadRow as error:
            errors.append(f"{example.where}: {error}")
            continue
        data.rows += [replace(row, index=len(data.rows) + number) for number, row in enumerate(rows)]
        data.where += [example.where] * len(rows)
    refuse(errors)
    if examples and not data.rows:
        raise DataError(f"all {len(examples)} rows are longer than chat.max_tokens={cfg.max_tokens}: raise it")
    return data


def _rows(example: Example, encoder: ChatEncoder, cfg: ChatConfig, data: ChatData[Row]) -> list[Row]:
    return [_row(text) for text in _fitting(example, encoder, cfg, data) if text is not None]


def _pairs(preference: Preference, encoder: ChatEncoder, cfg: ChatConfig, data: ChatData[Pair]) -> list[Pair]:
    chosen, rejected = (_fitting(one, encoder, cfg, data) for one in (preference.chosen, preference.rejected))
    if len(chosen) > 1 or len(rejected) > 1:
        raise BadRow(
            "an answer of several assistant turns, which the chat template writes otherwise once others follow: make "
            "it one turn"
        )
    [winner], [loser] = chosen, rejected
    if winner is None or loser is None:
        return []
    if winner.ids == loser.ids:
        raise BadRow("chosen and rejected are equal, so nothing can be learned from the pair: remove it")
    return [Pair(0, _row(winner), _row(loser))]


def _fitting(example: Example, encoder: ChatEncoder, cfg: ChatConfig, data: ChatData[T]) -> list[Learnt | None]:
    """Texts of an example within ``max_tokens``; None in place of one that does not fit."""
    fitting: list[Learnt | None] = []
    for text in encoder.encode(example):
        if text.taken_back:
            data.taken_back.append(text.taken_back)
        if len(text.ids) > cfg.max_tokens:
            short = shortened(text, cfg.max_tokens, encoder) if cfg.long == "cut" else None
            places = data.dropped if short is None else data.cut
            if example.where not in places[-1:]:
                places.append(example.where)
            fitting.append(short)
        else:
            fitting.append(text)
    return fitting


def shortened(text: Learnt, max_tokens: int, encoder: ChatEncoder) -> Learnt | None:
    """A text cut behind ``max_tokens``; None where the cut would leave nothing to learn or go through pictures."""
    if text.begin >= max_tokens:
        return None
    if encoder.processor is not None and encoder.processor.image_token in text.ids[max_tokens:]:
        return None
    return replace(text, ids=text.ids[:max_tokens], mask=text.mask[:max_tokens])


def _row(text: Learnt) -> Row:
    begin, end = text.begin, len(text.mask) - text.mask[::-1].index(True)
    learned = text.mask[begin:end]
    weights = None if all(learned) else tuple(map(float, learned))
    return Row(0, text.ids[:begin], text.ids[begin:end], pictures=text.pictures, weights=weights)
