"""Overlap of a training set with the questions of evaluations: whole texts and word n-grams. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NGRAM = 13  # words; the usual length in published decontamination since GPT-3
EXAMPLES = 3

# A word is a run of letters and digits, or one CJK character (no spaces to split at).
_WORD = re.compile(r"[㐀-鿿豈-﫿]|[^\W_㐀-鿿豈-﫿]+")

Place = tuple[str, int]  # (eval, number of the question in it)


class Index:
    """Index of whole texts and word n-grams of the questions of several evals.

    ``short``: number of questions of each eval that have fewer than ``n`` words, so no n-gram.
    """

    def __init__(self, evals: Mapping[str, Sequence[str]], n: int):
        if n < 1:
            raise ValueError(f"ngram={n}: set it to at least 1")
        self.n = n
        self.whole: dict[str, set[Place]] = {}
        self.grams: dict[tuple[str, ...], set[Place]] = {}
        self.short = dict.fromkeys(evals, 0)
        for name, texts in evals.items():
            for number, text in enumerate(texts):
                self.whole.setdefault(_squeezed(text), set()).add((name, number))
                grams = list(_grams(text, n))
                self.short[name] += not grams
                for gram in grams:
                    self.grams.setdefault(gram, set()).add((name, number))

    def hits(self, text: str) -> tuple[set[Place], dict[Place, str]]:
        """Questions with the same text, and questions that share an n-gram with the first one that they share."""
        parts: dict[Place, str] = {}
        # Nearly every row shares none, which isdisjoint decides without a Python loop.
        if not self.grams.keys().isdisjoint(_grams(text, self.n)):
            for gram in _grams(text, self.n):
                for place in self.grams.get(gram, ()):
                    parts.setdefault(place, " ".join(gram))
        return self.whole.get(_squeezed(text), set()), parts


def overlap(
    train: Sequence[str], evals: Mapping[str, Sequence[str]], n: int = NGRAM, examples: int = EXAMPLES
) -> list[dict[str, Any]]:
    """Contamination table, one row an eval: how many of its questions share their text or an ``n``-gram with ``train``.

    Keys of a row: eval, questions, short (questions under ``n`` words, which only an equal text can match), exact,
    ngram (questions hit; an exact one is not counted again), train_rows (rows that hit), share (fraction of the
    questions) and examples (up to ``examples`` questions that are hit). An example has train and question (row numbers
    from 0), kind (exact or ngram) and text (the common part).
    """
    index = Index(evals, n)
    hit: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in evals}
    rows = dict.fromkeys(evals, 0)
    for row, text in enumerate(train):
        whole, parts = index.hits(text)
        hits = parts | dict.fromkeys(whole, text)
        for name, number in sorted(hits):
            kind = "exact" if (name, number) in whole else "ngram"
            known = hit[name].get(number)
            if known is None or (known["kind"] == "ngram" and kind == "exact"):
                hit[name][number] = {"train": row, "question": number, "kind": kind, "text": hits[name, number]}
        for name in {name for name, _ in hits}:
            rows[name] += 1
    return [
        {
            "eval": name,
            "questions": len(texts),
            "short": index.short[name],
            "exact": sum(example["kind"] == "exact" for example in hit[name].values()),
            "ngram": sum(example["kind"] == "ngram" for example in hit[name].values()),
            "train_rows": rows[name],
            "share": len(hit[name]) / max(len(texts), 1),
            "examples": list(hit[name].values())[:examples],
        }
        for name, texts in evals.items()
    ]


def normal_text(text: str) -> str:
    """Key of exact duplicates: Unicode NFC, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _squeezed(text: str) -> str:
    """Key of whole-text overlap: also without case, white space and dollar signs. Operators stay."""
    return re.sub(r"[\s$]+", "", unicodedata.normalize("NFKC", text).casefold())


def _grams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
    return zip(*(words[i:] for i in range(n)), strict=False)
