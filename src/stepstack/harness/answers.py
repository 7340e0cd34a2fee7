"""One sample, from the engine's answer to its score, as it stands in samples.jsonl. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepstack.generation.types import Answer, Finish
from stepstack.records import Problem, Score, gold_text
from stepstack.report import jsonl


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
    media: Sequence[str] = ()  # files, by paths from the repository
    ids: Sequence[int] | None
    tokens: int
    finish: Finish
    answer: str | None
    score: float | None
    failure: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


def sample_of(answer: Answer, prompt: str, verdict: Score | None) -> Sample:
    """A scored answer; ``verdict`` is None where the engine failed."""
    failure = f"engine: {answer.error}" if verdict is None else None
    if verdict is not None and verdict.failure is not None:
        failure = f"grader: {verdict.failure}"
    return Sample(
        index=answer.problem.index,
        sample=answer.sample,
        problem=answer.problem.text,
        gold=gold_text(answer.problem.gold),
        prompt=prompt,
        text=answer.text,
        media=[str(file) for file in answer.media],
        ids=None if answer.ids is None else list(answer.ids),
        tokens=answer.length,
        finish=answer.finish,
        answer=None if verdict is None else verdict.answer,
        score=None if verdict is None or failure else verdict.value,
        failure=failure,
        parts=dict(verdict.parts) if verdict else {},
    )


def answer_row(answer: Answer) -> dict[str, Any]:
    """An answer as JSON, without its problem and its number."""
    return {
        "text": answer.text,
        "ids": None if answer.ids is None else list(answer.ids),
        "tokens": answer.tokens,
        "media": [str(file) for file in answer.media],
        "finish": answer.finish,
        "error": answer.error,
        **({"left_out": list(answer.left_out)} if answer.left_out else {}),
    }


def answer_of(row: Mapping[str, Any], problem: Problem, sample: int) -> Answer:
    """The answer that ``answer_row`` wrote."""
    return Answer(
        problem=problem,
        sample=sample,
        text=row["text"],
        ids=None if row["ids"] is None else tuple(row["ids"]),
        tokens=row["tokens"],
        media=tuple(map(Path, row["media"])),
        finish=row["finish"],
        error=row["error"],
        left_out=tuple(row.get("left_out", ())),
    )


def write(path: Path, samples: Sequence[Sample]) -> None:
    """Atomically, in order of (index, sample)."""
    jsonl.write_rows_atomic(path, [dataclasses.asdict(s) for s in sorted(samples, key=lambda s: (s.index, s.sample))])


def read(path: Path, count: int | None = None) -> list[Sample]:
    """Samples of a file that ``write`` wrote. ``count``: how many the evaluation's result speaks of.

    JsonError for a line that is torn, no sample, or there a second time, and for another number of samples.
    """
    samples, seen = [], dict[tuple[int, int], int]()
    for number, row in enumerate(jsonl.read_whole(path), 1):
        try:
            sample = Sample(**row)
        except TypeError as error:
            raise jsonl.JsonError(f"{path}:{number}: no sample ({error}): evaluate again into another folder") from None
        if (first := seen.setdefault((sample.index, sample.sample), number)) != number:
            raise jsonl.JsonError(
                f"{path}:{number}: sample {sample.sample} of problem {sample.index} stands in line {first} already: "
                "remove one of the lines"
            )
        samples.append(sample)
    if count is not None and len(samples) != count:
        raise jsonl.JsonError(
            f"{path} holds {len(samples)} samples, its result speaks of {count}: evaluate again into another folder"
        )
    return samples


def by_question(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples of each question, in order of index."""
    questions: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: (s.index, s.sample)):
        questions.setdefault(sample.index, []).append(sample)
    return list(questions.values())
