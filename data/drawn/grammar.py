"""Random text from a grammar: words spelled from syllables, drawn by Zipf's law from classes that follow each other.

A model first learns letters, then spelling, then which words follow. Its loss falls with size and data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stepstack.config import Strict

LETTERS = "abcdefghijklmnopqrstuvwxyz .?"
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
MAX_WORD_CHARACTERS = 9  # with the space behind the word
BLOCK = 256  # rows that are drawn at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar(Strict):
    """A language of classes of words, whose text is made on the spot."""

    type: Literal["grammar"] = "grammar"
    """Choice of the data: text made on the spot."""
    words: Annotated[int, Field(ge=16, le=4096)] = 512
    """Words of the language, all classes together."""
    classes: Annotated[int, Field(ge=2, le=64)] = 12
    """Classes of words."""
    successors: Annotated[int, Field(ge=1, le=64)] = 3
    """Classes that may follow a class, with unequal chances."""
    typos: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of letters that are replaced by any other, which no model can foresee: noise in the gradient."""

    @property
    def vocab(self) -> int:
        return len(LETTERS)


@dataclass(frozen=True, slots=True)
class Language:
    """Language as tables.

    spelling_VT: letters of each word, -1 behind its end. length_V: their number. members: words of each class.
    word_cdf: cumulative probabilities of these words, by class. next_cdf_CC: cumulative probabilities of the next
    class.
    """

    spelling_VT: NDArray[np.int64]
    length_V: NDArray[np.int64]
    members: list[NDArray[np.int64]]
    word_cdf: list[NDArray[np.float64]]
    next_cdf_CC: NDArray[np.float64]

    @property
    def classes(self) -> int:
        return len(self.members)


@lru_cache(maxsize=4)
def language(cfg: Grammar, seed: int) -> Language:
    rng = np.random.default_rng([seed, 0])
    spelling, length = np.full((cfg.words, MAX_WORD_CHARACTERS), -1), np.zeros(cfg.words, np.int64)
    for word in range(cfg.words):
        syllables = "".join(rng.choice(list(CONSONANTS)) + rng.choice(list(VOWELS)) for _ in range(rng.integers(1, 4)))
        letters = syllables + ("n" if rng.random() < 0.3 else "") + (". " if word % 16 == 15 else " ")
        spelling[word, : len(letters)], length[word] = [LETTERS.index(c) for c in letters], len(letters)
    members = [np.arange(c, cfg.words, cfg.classes) for c in range(cfg.classes)]
    word_cdf = [np.cumsum(1 / np.arange(1, len(m) + 1)) for m in members]
    following = np.zeros((cfg.classes, cfg.classes))
    for c in range(cfg.classes):
        chosen = rng.choice(cfg.classes, min(cfg.successors, cfg.classes), replace=False)
        following[c, chosen] = rng.dirichlet(np.ones(len(chosen)))
    next_cdf = np.cumsum(following, axis=1)
    return Language(spelling, length, members, [c / c[-1] for c in word_cdf], next_cdf / next_cdf[:, -1:])


@lru_cache(maxsize=64)
def block(cfg: Grammar, seed: int, stream: int, number: int, width: int) -> NDArray[np.int64]:
    """Block number ``number`` of a stream, [BLOCK, width]: a pure function of its arguments."""
    lang, rng = language(cfg, seed), np.random.default_rng([seed, 1, stream, number])
    rows = np.full((BLOCK, width + MAX_WORD_CHARACTERS), -1)
    at, kind = np.zeros(BLOCK, np.int64), rng.integers(0, lang.classes, BLOCK)
    while at.min() < width:
        kind = (rng.random(BLOCK)[:, None] > lang.next_cdf_CC[kind]).sum(axis=1)
        chance, word = rng.random(BLOCK), np.zeros(BLOCK, np.int64)
        for c in np.unique(kind):
            here = kind == c
            word[here] = lang.members[c][np.searchsorted(lang.word_cdf[c], chance[here])]
        open_rows = np.flatnonzero(at < width)
        for letter in range(MAX_WORD_CHARACTERS):
            there = open_rows[letter < lang.length_V[word[open_rows]]]
            rows[there, at[there] + letter] = lang.spelling_VT[word[there], letter]
        at[open_rows] += lang.length_V[word[open_rows]]
    rows = rows[:, :width]
    wrong = rng.random(rows.shape) < cfg.typos
    return np.where(wrong, rng.integers(0, len(LETTERS), rows.shape), rows)


def rows(cfg: Grammar, seed: int, stream: int, first: int, count: int, width: int) -> NDArray[np.int64]:
    """Rows ``first`` to ``first + count`` of a stream, [count, width]."""
    numbers = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
    blocks = np.concatenate([block(cfg, seed, stream, number, width) for number in numbers])
    start = first - numbers.start * BLOCK
    return blocks[start : start + count]


def show(row: NDArray[np.int64]) -> str:
    return "".join(LETTERS[i] for i in row)
