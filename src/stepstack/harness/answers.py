"""One sample, from the engine's completion to its score, as it stands in samples.jsonl. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stepstack.report import jsonl

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine made of a request. ``ids``: its tokens, None where it does not tell; ``tokens`` counts them.

    ``finish`` "error" with ``error`` set: this one request failed and the engine goes on. An engine that cannot go on
    raises.
    """

    text: str
    ids: Sequence[int] | None
    tokens: int
    finish: Finish
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A row of samples.jsonl. ``score`` is None where there is no verdict, and ``failure`` then says why: "engine: ..."
    or "grader: ..."."""

    index: int  # of the problem
    sample: int  # 0..k-1
    problem: str
    gold: str
    prompt: str  # as sent; a chat as "role: content" lines
    text: str
    ids: Sequence[int] | None
    tokens: int
    finish: Finish
    answer: str | None
    score: float | None
    failure: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


def write(path: Path, samples: Sequence[Sample]) -> None:
    """Atomically, in order of (index, sample)."""
    jsonl.write_rows_atomic(path, [dataclasses.asdict(s) for s in sorted(samples, key=lambda s: (s.index, s.sample))])


def read(path: Path) -> list[Sample]:
    rows: list[dict[str, Any]] = jsonl.read(path)
    return [Sample(**row) for row in rows]


def by_question(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples of each question, in order of index."""
    questions: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: (s.index, s.sample)):
        questions.setdefault(sample.index, []).append(sample)
    return list(questions.values())
