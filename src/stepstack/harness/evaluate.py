"""Evaluate one task: ask the questions that nobody has asked yet, score everything, write the result.

Questions go to the engine in fixed pieces, piece i to process i modulo their number, and a piece's answers are
written at once. So neither a kill nor the number of processes changes what is sampled or how it is batched.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from stepstack.config import ConfigError
from stepstack.core.progress import Progress
from stepstack.core.types import ProcessGroup
from stepstack.generation.prompts import ClipPrompt, Pictured, Request, Resynthesis, SpeechPrompt, SpokenChat
from stepstack.generation.types import Answer, Budget, EngineError
from stepstack.harness import answers as io
from stepstack.harness.answers import Sample
from stepstack.harness.engine import Engine, Question
from stepstack.harness.metrics import average
from stepstack.harness.store import SAMPLES, Store, plan
from stepstack.harness.task import Task
from stepstack.records import Problem, gold_text
from stepstack.report.provenance import provenance

WRITE_EVERY = 1.0  # seconds; what an engine yields in between is written together


Again = Literal["all", "failed"]


class Stopped(ValueError):
    """The engine went away or failed on everything: says why, what is kept and how to go on."""


def evaluate(
    task: Task,
    engine: Engine,
    world: ProcessGroup,
    *,
    root: Path,
    data: Path,
    model: Mapping[str, Any],
    budget: Budget | None = None,
    limit: int | None = None,
    again: Again | None = None,
    about: Mapping[str, Any] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """(folder, result) of ``task``; an evaluation of the same plan that is over is not repeated.

    ``model``: name, sha256 (None where unknown). ``budget``: in place of the task's; ``limit``: the first so many
    rows; ``again``: which questions are asked anew, all or those on which the engine failed; ``about``: more facts for
    the record.

    Raises Stopped when the engine goes away or no sample has a verdict, which leaves no result, and ConfigError for
    rows without gold or of one index.
    """
    budget = budget or task.budget
    problems = checked(task, task.rows(data))[:limit]
    judge = task.judge() if task.judge else None
    store = Store(root, plan(task.name, task.version, problems, budget, model, engine.facts, judge))
    if world.rank == 0 and store.folder.is_dir() and again is not None:
        store.forget() if again == "all" else store.forget_failures()
    if world.rank == 0:
        store.begin()
    world.gather([])  # the others look only now
    if (result := store.result()) is not None:
        return store.folder, result
    questions = [Question(problem, task.request(problem)) for problem in problems]
    started = time.perf_counter()
    local_samples = _answer(task, engine, world, store, questions, budget)
    everything: list[Sample] = sorted(world.gather(local_samples), key=lambda s: (s.index, s.sample))
    world.gather([])
    if all(sample.failure is not None for sample in everything):
        if world.rank == 0:
            store.forget_failures()
        raise Stopped(
            f"all {len(everything)} samples of {task.name} failed, most of them with {commonest(everything)}\n"
            "Mend that, and give the same command again"
        )
    if world.rank == 0:
        generated, seconds = store.generated(problems)
        record = summary(task, everything, budget) | {"plan": store.plan, "model": dict(model), **(about or {})}
        if left_out := sorted({name for given in generated.values() for answer in given for name in answer.left_out}):
            record["left_out"] = left_out
        timing = {"wall_s": time.perf_counter() - started, "generation_s": seconds}
        io.write(store.folder / SAMPLES, everything)
        store.finish(record | {"provenance": provenance(), "timing": timing})
    world.gather([])
    result = store.result()
    assert result is not None
    return store.folder, result


def commonest(samples: Sequence[Sample]) -> str:
    """The failure that most samples have, numbers in it aside."""
    failures = [sample.failure for sample in samples if sample.failure is not None]
    [(kind, _)] = Counter(re.sub(r"\d+", "0", failure) for failure in failures).most_common(1)
    return next(failure for failure in failures if re.sub(r"\d+", "0", failure) == kind)


def checked(task: Task, problems: Sequence[Problem]) -> list[Problem]:
    """Every row has a gold answer and an index of its own, or ConfigError."""
    if not problems:
        raise ConfigError(f"task {task.name}: no rows: check the file or dataset that it reads")
    without_gold = [problem.index for problem in problems if not gold_text(problem.gold).strip()]
    if without_gold:
        raise ConfigError(f"task {task.name}: rows {without_gold[:10]} have no gold answer: add it or remove them")
    if len({problem.index for problem in problems}) < len(problems):
        raise ConfigError(f"task {task.name}: two rows have the same index: number them anew")
    return list(problems)


def summary(task: Task, samples: Sequence[Sample], budget: Budget) -> dict[str, Any]:
    """The figures of a result: a pure function of the samples."""
    questions = io.by_question(samples)
    measured = [(metric, metric.measure(questions)) for metric in task.metrics(budget)]
    answered = [sample for sample in samples if sample.finish != "error"]
    return {
        "kind": "eval",
        "task": task.name,
        "version": task.version,
        "metrics": [
            {
                "name": metric.name,
                "value": figure and figure.value,
                "stderr": figure and figure.stderr,
                "n": figure.n if figure else 0,
                "higher_is_better": metric.higher_is_better,
            }
            for metric, figure in measured
        ],
        "n": len(questions),
        "k": budget.n,
        "samples": len(samples),
        "failed": {
            "engine": sum(sample.finish == "error" for sample in samples),
            "grader": sum(sample.failure is not None and sample.finish != "error" for sample in samples),
        },
        "truncated": sum(sample.finish == "length" for sample in samples),
        "tokens": sum(sample.tokens for sample in samples),
        "length": fmean(sample.tokens for sample in answered) if answered else None,
    }


def _answer(
    task: Task, engine: Engine, world: ProcessGroup, store: Store, questions: Sequence[Question], budget: Budget
) -> list[Sample]:
    """This process's samples: of its pieces, and its share of what had been generated before."""
    generated, _ = store.generated([question.problem for question in questions])
    world.gather([])  # all have looked before the first writes
    answered = [question for question in questions if question.problem.index in generated]
    pieces = list(_pieces(questions, max(1, engine.batch // budget.n)))[world.rank :: world.processes]
    samples: list[Sample] = []
    share = answered[world.rank :: world.processes]
    samples += _scored(task, [(question, generated[question.problem.index]) for question in share])
    todo = [[q for q in piece if q.problem.index not in generated] for piece in pieces]
    total = len(share) + sum(map(len, todo))
    with Progress(task.name, total, len(share), visible=world.rank == 0) as progress:
        for piece in todo:
            for batch, seconds in _written_together(engine, piece, budget):
                store.append(world.rank, [(q.problem.index, given) for q, given in batch], seconds)
                samples += _scored(task, batch)
                score = average(samples)
                row = {} if score is None else {"score": score}
                progress.advance(
                    len({s.index for s in samples}), {**row, "failed": sum(s.score is None for s in samples)}
                )
    return samples


def _written_together(
    engine: Engine, piece: Sequence[Question], budget: Budget
) -> Iterator[tuple[list[tuple[Question, list[Answer]]], float]]:
    """Answers that come within a second of each other, and the seconds since the last ones."""
    bunch: list[tuple[Question, list[Answer]]] = []
    before = first = time.perf_counter()
    try:
        for item in engine.complete(piece, budget) if piece else ():
            first = time.perf_counter() if not bunch else first
            bunch.append(item)
            if (now := time.perf_counter()) - first > WRITE_EVERY:
                yield bunch, now - before
                before, bunch = now, []
    except EngineError as error:
        if bunch:
            yield bunch, time.perf_counter() - before
        raise Stopped(
            f"the engine went away: {error}\nWhat it had answered is kept; the same command goes on from there"
        ) from error
    if bunch:
        yield bunch, time.perf_counter() - before


def _pieces(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


def _scored(task: Task, answered: Sequence[tuple[Question, list[Answer]]]) -> list[Sample]:
    """Samples of answers; those that failed are not shown to the grader."""
    pairs = [(question, answer) for question, given in answered for answer in given]
    whole = [answer for _, answer in pairs if answer.finish != "error"]
    verdicts = iter(task.score(whole) if whole else [])
    return [
        io.sample_of(answer, request_text(question.request), None if answer.finish == "error" else next(verdicts))
        for question, answer in pairs
    ]


def request_text(request: Request) -> str:
    """A request as text: a chat as "role: content" lines, pictures as their references, a text to be spoken after its
    speaker and tag."""
    if isinstance(request, Pictured | ClipPrompt):
        return "\n".join([*map(repr, request.pictures), request.text])
    if isinstance(request, Resynthesis):
        return request.text
    if isinstance(request, SpokenChat):
        return "\n".join(f"{turn.role}: {turn.text}" for turn in request.turns)
    if isinstance(request, SpeechPrompt):
        return " ".join(filter(None, (request.speaker, request.tag, request.text)))
    return request if isinstance(request, str) else "\n".join(f"{m.role}: {m.content}" for m in request)
