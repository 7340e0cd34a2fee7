"""Similarity of two texts: edit distance, word overlap, BLEU-4, METEOR without synonyms. No torch.

The caller splits words, by ``words`` where the language may have no spaces between them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, Literal

from rapidfuzz.distance import Levenshtein

Edit = Literal["equal", "replace", "delete", "insert"]

ORDER = 4  # largest n of the n-grams of BLEU
ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5  # METEOR: weight of precision, power and weight of the fragmentation penalty


def normalised_edit_distance(a: Sequence[str], b: Sequence[str]) -> float:
    """Levenshtein distance of characters or words over the length of the longer: 0 for equal texts, 1 without a common
    part.

    Two empty texts are equal.
    """
    return Levenshtein.normalized_distance(a, b)


def edits(a: Sequence[str], b: Sequence[str]) -> list[tuple[Edit, int, int]]:
    """Least edits that turn ``a`` into ``b``, item by item in order: (kind, place in a, place in b), kind being equal,
    replace, delete or insert."""
    steps: list[tuple[Edit, int, int]] = []
    for block in Levenshtein.opcodes(a, b):
        count = max(block.src_end - block.src_start, block.dest_end - block.dest_start)
        kind: Edit = block.tag  # type: ignore[assignment]
        steps += [(kind, block.src_start + k, block.dest_start + k) for k in range(count)]
    return steps


_CHARACTERS = re.compile(  # of scripts that put no space between words: kana, Han, Thai, Lao, Khmer, Burmese
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U000323af]"
)


def words(text: str) -> list[str]:
    """Words of a text: what stands between white space, and each character of a script that has no spaces. Unicode NFC
    first, by which an accent is one character however it was typed."""
    return _CHARACTERS.sub(lambda match: f" {match[0]} ", unicodedata.normalize("NFC", text)).split()


def word_overlap(prediction: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    """Word sets compared by ``precision``, ``recall`` and ``f1``, the metric of Perception-R1's OCR evaluation.

    Order and repetition do not count. Two empty texts agree (1). An empty one shares nothing with another (0).
    """
    predicted, expected = set(prediction), set(gold)
    if not predicted and not expected:
        return {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    common = len(predicted & expected)
    return {
        "precision": common / len(predicted) if predicted else 0.0,
        "recall": common / len(expected) if expected else 0.0,
        "f1": 2 * common / (len(predicted) + len(expected)),
    }


def bleu(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """BLEU-4 against one reference with uniform weights and no smoothing, NLTK's default.

    It is 0 wherever an order has no n-gram in common, even for equal texts of fewer than four words. (NLTK takes the
    smallest float for such an order, which gives about 1e-77 or more.)
    """
    logs = []
    for n in range(1, ORDER + 1):
        predicted, expected = _ngrams(prediction, n), _ngrams(gold, n)
        common = sum((predicted & expected).values())
        if not common:
            return 0.0
        logs.append(math.log(common / sum(predicted.values())))
    brevity = min(0.0, 1 - len(gold) / len(prediction))
    return math.exp(brevity + math.fsum(logs) / ORDER)


def meteor(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """METEOR without synonyms: words match in lower case exactly, then by their Porter stems (extra ``vision``: nltk).

    Lavie and Agarwal's (2007) F-mean with its fragmentation penalty, in NLTK's parameters. NLTK's own ``meteor_score``
    has a third stage, WordNet synonyms, so figures of the two are not to be compared. An exact copy of n words scores
    1 - 0.5 / n**3.
    """
    predicted, expected = [word.lower() for word in prediction], [word.lower() for word in gold]
    pairs = _align(predicted, expected, [*range(len(predicted))], [*range(len(expected))])
    used, taken = {i for i, _ in pairs}, {j for _, j in pairs}
    left = [i for i in range(len(predicted)) if i not in used]
    free = [j for j in range(len(expected)) if j not in taken]
    pairs += _align([_stem(word) for word in predicted], [_stem(word) for word in expected], left, free)
    if not pairs:
        return 0.0
    pairs.sort()
    chunks = 1 + sum((i + 1, j + 1) != after for (i, j), after in pairwise(pairs))
    precision, recall = len(pairs) / len(predicted), len(pairs) / len(expected)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    return mean * (1 - GAMMA * (chunks / len(pairs)) ** BETA)


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _align(
    predicted: Sequence[str], expected: Sequence[str], left: list[int], free: list[int]
) -> list[tuple[int, int]]:
    """Pairs of equal words among the places ``left`` and ``free``, both ascending.

    Each word from the end backwards takes the last place that is still free.
    """
    places: dict[str, list[int]] = {}
    for j in free:
        places.setdefault(expected[j], []).append(j)
    return [(i, places[predicted[i]].pop()) for i in reversed(left) if places.get(predicted[i])]


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return _stemmer().stem(word)


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer  # an extra: imported only where it is needed

    return PorterStemmer()
