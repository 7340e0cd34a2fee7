"""StepEval-Audio-360 and LLaMA Questions: a served model that hears answers, another judges its words.

The published figures are GPT-4o's verdicts on texts; its prompts are not published, these are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.sets import spoken_questions
from data.sets.spoken_questions import CATEGORIES
from recipes.stepaudio.config import Benchmarks
from recipes.stepaudio.evaluation.spoken import by_group
from stepstack.config import ConfigError
from stepstack.generation.types import Answer, Budget, Sampling
from stepstack.harness.config import ServedJudge
from stepstack.harness.engine import Engine
from stepstack.harness.judging import ask, identity, no_verdict, open_judge
from stepstack.harness.metrics import Metric, part
from stepstack.harness.task import Task
from stepstack.records import Problem, Score, gold_text
from stepstack.scoring.speech import normal_words

SHOWN = "Chat:\n{chat}\n\nAnswer:\n{answer}\n\n"
FACTUALITY = SHOWN + "Is all that the answer states true? Answer yes or no."
RELEVANCE = SHOWN + "Does the answer do what the last turn asks? Answer yes or no."
CHAT = SHOWN + "How good is the answer, from 1 (useless) to 5 (excellent)? Answer with one number."
RIGHT = (
    "Question:\n{chat}\n\nRight answer:\n{gold}\n\nGiven answer:\n{answer}\n\n"
    "Does the given answer mean the right one? Answer yes or no."
)
VERDICT = 8  # tokens of a verdict
MAX_TOKENS = 1024  # tokens of an answer


def chat_tasks(cfg: Benchmarks) -> list[Task]:
    """Both sets, from rows in the folder of benchmark data."""
    judge = None if (served := cfg.judge) is None else lambda: identity(served)
    judged = f"right ({cfg.judge.model or cfg.judge.url})" if cfg.judge else "right (its words are in the answer)"

    def stepeval(data: Path) -> list[Problem]:
        wanted(cfg)
        return spoken_questions.stepeval(data)

    return [
        _task("stepeval_audio_360", "StepEval-Audio-360, multi-turn chats", stepeval, Rated(cfg), rated_metrics, judge),
        _task(
            "llama_questions",
            "LLaMA Questions",
            spoken_questions.llama_questions,
            Right(cfg),
            lambda budget: [part("right", judged)],
            judge,
        ),
    ]


def _task(
    name: str,
    about: str,
    rows: Callable[[Path], Sequence[Problem]],
    score: Callable[[Sequence[Answer]], list[Score]],
    metrics: Callable[[Budget], Sequence[Metric]],
    judge: Callable[[], Mapping[str, Any]] | None,
) -> Task:
    return Task(
        name=name,
        version=1,
        about=about,
        rows=rows,
        request=spoken_questions.chat_of,
        score=score,
        budget=Sampling(temperature=0.0, max_tokens=MAX_TOKENS),
        metrics=metrics,
        judge=judge,
    )


def wanted(cfg: Benchmarks) -> ServedJudge:
    """The config's judge. ConfigError where there is none."""
    if cfg.judge is None:
        raise ConfigError("StepEval-Audio-360 is judged by a served model: give benchmarks.judge.url=http://host:port")
    return cfg.judge


class Rated:
    """Parts of a score: ``factuality`` and ``relevance`` (0 or 1), ``chat`` (1 to 5), the last also by category. The
    value is the chat score from 0 to 1."""

    def __init__(self, cfg: Benchmarks):
        self.cfg = cfg

    def __call__(self, answers: Sequence[Answer]) -> list[Score]:
        engine = open_judge(wanted(self.cfg))
        shown = [{"chat": answer.problem.text, "answer": answer.text} for answer in answers]
        true, relevant = (yes(engine, [form.format(**row) for row in shown]) for form in (FACTUALITY, RELEVANCE))
        rates = rated(engine, [CHAT.format(**row) for row in shown])
        scores = []
        for answer, *verdicts in zip(answers, true, relevant, rates, strict=True):
            parts = dict(zip(("factuality", "relevance", "chat"), map(float, verdicts), strict=True))
            parts[f"chat/{answer.problem.meta['category']}"] = parts["chat"]
            scores.append(Score((parts["chat"] - 1) / 4, parts, answer=answer.text))
        return scores


def rated_metrics(budget: Budget) -> list[Metric]:
    """The paper's three figures, then the chat score of each category."""
    overall = [part("factuality"), part("relevance"), part("chat", "chat score")]
    return overall + [by_group("chat", category) for category in CATEGORIES]


class Right:
    """Whether an answer means the right one: by the judge, or without one by whether the right one's words stand in
    it."""

    def __init__(self, cfg: Benchmarks):
        self.cfg = cfg

    def __call__(self, answers: Sequence[Answer]) -> list[Score]:
        if self.cfg.judge is None:
            verdicts = [contains(answer.text, gold_text(answer.problem.gold)) for answer in answers]
        else:
            rows = [{"chat": a.problem.text, "gold": gold_text(a.problem.gold), "answer": a.text} for a in answers]
            verdicts = yes(open_judge(self.cfg.judge), [RIGHT.format(**row) for row in rows])
        pairs = zip(answers, verdicts, strict=True)
        return [Score(float(right), {"right": float(right)}, answer=answer.text) for answer, right in pairs]


def contains(answer: str, gold: str) -> bool:
    """Whether the words of the right answer stand in the answer, one behind the other."""
    said, words = normal_words(answer, "spoken-en"), normal_words(gold, "spoken-en")
    return any(said[k : k + len(words)] == words for k in range(len(said) - len(words) + 1)) if words else False


def yes(engine: Engine, texts: Sequence[str]) -> list[bool]:
    """Yes or no to each question. EngineError for an answer that is neither."""
    said = ask(engine, texts, VERDICT)
    if unclear := [text for text in said if not text.startswith(("yes", "no"))]:
        raise no_verdict(engine, f"it said {unclear[0]!r}")
    return [text.startswith("yes") for text in said]


def rated(engine: Engine, texts: Sequence[str]) -> list[int]:
    """Numbers from 1 to 5. EngineError for an answer that is none."""
    said = ask(engine, texts, VERDICT)
    found = [re.match(r"\D{0,12}([1-5])\b", text) for text in said]
    if unclear := [text for text, number in zip(said, found, strict=True) if number is None]:
        raise no_verdict(engine, f"it said {unclear[0]!r}, no number from 1 to 5")
    return [int(number[1]) for number in found if number is not None]
