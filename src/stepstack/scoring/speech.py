"""Word errors of speech by a named normaliser, filters of takes, what they keep, and codebook use. No torch.

A take is one utterance that a model spoke. The rate of an utterance is its word errors over the words of its text (for
``seed-zh`` characters); the rate of a set is the mean over its utterances, as seed-tts-eval has it, not errors over all
words.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stepstack.bounds import Magnitude, Weight
from stepstack.config import Strict
from stepstack.scoring.text.similarity import Edit, edits

Normaliser = Literal["seed-en", "seed-zh", "spoken-en"]

# zhon.hanzi.punctuation, which seed-tts-eval takes out beside string.punctuation.
HANZI_PUNCTUATION = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏﹑﹔·！？｡。"
)
SEED_PUNCTUATION = {ord(mark): None for mark in HANZI_PUNCTUATION + string.punctuation if mark != "'"}
TEENS = (
    "ten",
    "eleven",
    "twelve",
    *(f"{s}teen" for s in ("thir", "four", "fif", "six", "seven", "eigh", "nine")),
)
ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", *TEENS)
TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
BAD = 0.5  # rate above which seed-tts-eval counts an utterance as failed


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Errors of one utterance. ``marks`` are the words of text and transcript in order, each with its fate; a replaced
    word stands twice, as a delete and an insert that are both marked replace, the text's word first."""

    words: int
    replaced: int
    deleted: int
    inserted: int
    marks: tuple[tuple[str, Edit], ...]

    @property
    def errors(self) -> int:
        return self.replaced + self.deleted + self.inserted

    @property
    def rate(self) -> float:
        """Errors a word of the text. Without a word in the text each inserted word counts as one whole error."""
        return self.errors / max(1, self.words)


def normal_words(text: str, normaliser: Normaliser) -> list[str]:
    """Words that are compared.

    seed-en and seed-zh are seed-tts-eval's: punctuation goes, except the apostrophe; English in lower case, Chinese by
    character; a number stays as it is written. spoken-en also writes numbers below a million as words and splits at
    hyphens, so that "30 red-hot" is "thirty red hot".
    """
    match normaliser:
        case "seed-en":
            return text.translate(SEED_PUNCTUATION).lower().split()
        case "seed-zh":
            return [letter for letter in text.translate(SEED_PUNCTUATION) if not letter.isspace()]
        case "spoken-en":
            text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.lower().replace("’", "'"))
            text = re.sub(r"(?<!\d)\d{1,6}(?!\d)", lambda digits: f" {number_words(int(digits[0]))} ", text)
            return [word for part in re.findall(r"[\w']+", text) if (word := part.strip("'_"))]


def number_words(number: int) -> str:
    """English words of a whole number from 0 to 999,999."""
    if not 0 <= number < 1_000_000:
        raise ValueError(f"{number}: only numbers from 0 to 999,999 are written as words")
    if number >= 1000:
        rest = f" {number_words(number % 1000)}" if number % 1000 else ""
        return f"{number_words(number // 1000)} thousand{rest}"
    if number >= 100:
        rest = f" {number_words(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number >= 20:
        rest = f" {ONES[number % 10]}" if number % 10 else ""
        return f"{TENS[number // 10]}{rest}"
    return ONES[number]


def word_errors(text: str, transcript: str, normaliser: Normaliser) -> WordErrors:
    """Least edits that turn the text into what was heard, and the words with their fates."""
    said, heard = normal_words(text, normaliser), normal_words(transcript, normaliser)
    counts: Counter[str] = Counter()
    marks: list[tuple[str, Edit]] = []
    for kind, i, j in edits(said, heard):
        counts[kind] += 1
        if kind != "insert":
            marks.append((said[i], kind))
        if kind in ("insert", "replace"):
            marks.append((heard[j], kind))
    return WordErrors(len(said), counts["replace"], counts["delete"], counts["insert"], tuple(marks))


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Rates of a set of utterances: ``mean`` over utterances, ``corpus`` (all errors over all words), ``failed`` (share
    of the utterances whose rate is above a half), ``error`` (standard error of the mean), and ``utterances``."""

    mean: float
    corpus: float
    failed: float
    error: float
    utterances: int


def error_rates(utterances: Sequence[WordErrors]) -> ErrorRates:
    """Rates of a set. ValueError for an empty one."""
    if not utterances:
        raise ValueError("no utterances: there is nothing to rate")
    rates = np.array([each.rate for each in utterances])
    words = sum(each.words for each in utterances)
    error = float(rates.std(ddof=1) / math.sqrt(len(rates))) if len(rates) > 1 else 0.0
    corpus = sum(each.errors for each in utterances) / max(1, words)
    return ErrorRates(float(rates.mean()), corpus, float((rates > BAD).mean()), error, len(rates))


@dataclass(frozen=True, kw_only=True, slots=True)
class TakeFilter(Strict):
    """Thresholds that a take must meet to be kept; the paper publishes none. A null one is not asked."""

    wer: Weight | None = 0.1
    """Largest word error rate of the transcript."""
    similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Least cosine to the centroid of the speaker that was asked for."""
    dnsmos: Annotated[float, Field(ge=1, le=5)] | None = None
    """Least overall DNSMOS."""
    duration: tuple[Magnitude, Magnitude] | None = (0.6, 1.6)
    """Least and largest duration over the one expected of the text at its speed."""
    silence: Magnitude | None = 0.6
    """Longest silence in seconds within the speech."""
    ended: bool = True
    """Whether a take must have ended by itself."""

    def __post_init__(self) -> None:
        if self.duration is not None and self.duration[0] >= self.duration[1]:
            raise ValueError(f"duration={self.duration}: the first number must be the smaller one")


@dataclass(frozen=True, kw_only=True, slots=True)
class TakeMeasures:
    """Measures of one take; None where nobody measured. ``duration`` is a ratio to the expected one, ``silence`` the
    longest inner one in seconds."""

    wer: float | None = None
    similarity: float | None = None
    dnsmos: float | None = None
    duration: float | None = None
    silence: float | None = None
    ended: bool = True


def failed_filters(measures: TakeMeasures, limits: TakeFilter) -> tuple[str, ...]:
    """Names of the filters that a take does not pass. ValueError where one is asked that was not measured."""
    limit_of = {item.name: getattr(limits, item.name) for item in fields(limits)}
    asked = [name for name, limit in limit_of.items() if limit is not None and limit is not False]  # 0.0 is a limit
    if unmeasured := [name for name in asked if getattr(measures, name) is None]:
        raise ValueError(f"filters {unmeasured} ask for what was not measured: set them to null, or install the judge")
    return tuple(name for name in asked if not _passes(name, getattr(measures, name), limit_of[name]))


def _passes(name: str, value: float, limit: float | tuple[float, float]) -> bool:
    if math.isnan(value):
        return False
    match name:
        case "wer" | "silence":
            assert not isinstance(limit, tuple)
            return value <= limit
        case "duration":
            assert isinstance(limit, tuple)
            return limit[0] <= value <= limit[1]
        case "ended":
            return bool(value)
        case _:
            assert not isinstance(limit, tuple)
            return value >= limit


@dataclass(frozen=True, slots=True)
class JudgedTake:
    """Outcome of a take: the filters that refused it, none if it is kept, and its ``labels`` for the report, such as
    {"speaker": "heart", "tag": "fast1"}."""

    text: str
    refused: tuple[str, ...]
    labels: Mapping[str, str]


Counts = dict[str, str | int | float]


def keep_rates(takes: Sequence[JudgedTake]) -> list[Counts]:
    """Rows {by, value, takes, kept, rate}: all takes, then each label's values; and for each filter how many takes it
    refused (``refused``) and how many it alone refused (``alone``)."""
    rows = [_rate("all", "", takes)]
    for label in sorted({label for take in takes for label in take.labels}):
        groups: dict[str, list[JudgedTake]] = {}
        for take in takes:
            groups.setdefault(take.labels.get(label, ""), []).append(take)
        rows += [_rate(label, value, groups[value]) for value in sorted(groups)]
    for name in sorted({name for take in takes for name in take.refused}):
        refused = sum(name in take.refused for take in takes)
        alone = sum(take.refused == (name,) for take in takes)
        row: Counts = {"by": "filter", "value": name, "takes": len(takes), "kept": len(takes) - refused}
        rows.append(row | {"rate": 1 - refused / len(takes), "refused": refused, "alone": alone})
    return rows


def _rate(by: str, value: str, takes: Sequence[JudgedTake]) -> Counts:
    kept = sum(not take.refused for take in takes)
    return {"by": by, "value": value, "takes": len(takes), "kept": kept, "rate": kept / max(1, len(takes))}


def texts_without_a_take(takes: Sequence[JudgedTake]) -> list[str]:
    """Texts of which no take is kept, in the order of their first take."""
    kept = {take.text for take in takes if not take.refused}
    return [text for text in dict.fromkeys(take.text for take in takes) if text not in kept]


def take_order(measures: TakeMeasures) -> tuple[float, float, float]:
    """Sort key of the takes of one text, the best first: least word errors, then similarity and DNSMOS together (each
    about one over its range), then the duration nearest to the expected one."""
    quality = (measures.similarity or 0.0) + (measures.dnsmos or 0.0) / 4
    off = abs(math.log(measures.duration)) if measures.duration else 0.0
    return (measures.wer or 0.0, -quality, off)


def codebook_use(codes: Sequence[int] | NDArray[np.integer], size: int) -> dict[str, float]:
    """``used`` (share of a codebook's entries that occur) and ``perplexity`` (of their distribution, at most size)."""
    counts = np.bincount(np.asarray(codes, dtype=np.int64), minlength=size)
    if len(counts) > size:
        raise ValueError(f"code {len(counts) - 1} is not of a codebook of {size}")
    chance = counts[counts > 0] / max(1, counts.sum())
    perplexity = float(np.exp(-(chance * np.log(chance)).sum())) if len(chance) else 0.0
    return {"used": float((counts > 0).mean()), "perplexity": perplexity}


def silences(wave: NDArray[np.floating], rate: int, below: float = 40.0) -> tuple[float, float, float]:
    """Seconds of silence before the speech, the longest within it, and after it.

    A frame of 10 ms is silent where its level is ``below`` dB or more under that of the loudest frame. Without any
    sound the whole is silence before the speech.
    """
    size = max(1, rate // 100)
    count = len(wave) // size
    level = np.sqrt(np.mean(np.square(wave[: count * size].astype(np.float64).reshape(count, size)), axis=1))
    loud = np.flatnonzero(level > max(level.max(initial=0.0) * 10 ** (-below / 20), 1e-6))
    if not len(loud):
        return len(wave) / rate, 0.0, 0.0
    inner = int(np.diff(loud).max(initial=1)) - 1
    return loud[0] * size / rate, inner * size / rate, len(wave) / rate - (loud[-1] + 1) * size / rate
