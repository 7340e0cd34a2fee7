"""How an answer is compared with the one that the data has."""

from __future__ import annotations

from collections.abc import Sequence

from stepstack.generation.types import Answer
from stepstack.records import Score, gold_text
from stepstack.scoring.text.similarity import normalised_edit_distance


def exact(answers: Sequence[Answer]) -> list[Score]:
    """1 for the very words of the data and an end, else 0, white space aside. The part ``similarity`` is 1 minus the
    edit distance over words, by the longer one; a drawn dialogue has its kind as a part too."""
    return [_score(answer) for answer in answers]


def _score(answer: Answer) -> Score:
    said, gold = answer.text.split(), gold_text(answer.problem.gold).split()
    right = float(said == gold and answer.finish == "stop")
    parts = {"similarity": 1 - normalised_edit_distance(said, gold), "finished": float(answer.finish == "stop")}
    if kind := answer.problem.meta.get("kind"):
        parts[kind] = right
    return Score(right, parts, answer.text)
