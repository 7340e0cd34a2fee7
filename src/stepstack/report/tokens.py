"""Rows of tokens in a terminal, those that are learned marked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

PARTIAL = "\ufffd"  # shown by a decoder for a part of a character
STYLES = {True: ("bold green", "bold green reverse"), False: ("default", "dim")}  # one token, and the next
OPEN, CLOSE = "\u2039", "\u203a"  # around what is learned, where there are no colours


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row with a title: the text of each token, and whether it is learned."""

    title: str
    tokens: tuple[tuple[str, bool], ...]


def readable(
    decode: Callable[[list[int]], str], ids: Sequence[int], learned: Sequence[bool]
) -> Iterator[tuple[str, bool]]:
    """Text of each token; tokens that are a character only together are one text."""
    held: list[int] = []
    for token, learns in zip(ids, learned, strict=True):
        held.append(token)
        if PARTIAL not in (text := decode(held)):
            yield text, learns
            held = []
    if held:
        yield decode(held), learned[-1]


def print_rows(rows: Iterable[ShownRow], console: Console) -> int:
    """Print rows, learned tokens in green, or in angle quotes where there are no colours; their number."""
    count = 0
    for row in rows:
        learned = sum(learns for _, learns in row.tokens)
        head = Text.assemble((row.title, "bold"), f": {len(row.tokens)} tokens, {learned} learned")
        console.print(head, soft_wrap=True)
        console.print(_coloured(row) if console.color_system else _quoted(row), soft_wrap=True)
        count += 1
    return count


def _coloured(row: ShownRow) -> Text:
    text = Text()
    for place, (token, learns) in enumerate(row.tokens):
        text.append(token, STYLES[learns][place % 2])
    return text


def _quoted(row: ShownRow) -> Text:
    parts, before = [], False
    for token, learns in (*row.tokens, ("", False)):
        if learns != before:
            parts.append(OPEN if learns else CLOSE)
        parts.append(token)
        before = learns
    return Text("".join(parts))
