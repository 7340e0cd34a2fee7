"""Held-out questions as evaluation tasks."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from data.drawn.dialogues import KINDS, Dialogues
from data.drawn.splits import SPLITS, Split
from recipes.chat.config import Config
from recipes.chat.data import problems
from recipes.chat.reward import exact
from stepstack.generation.chat import Continuation, written_text
from stepstack.generation.prompts import Message
from stepstack.generation.types import Budget
from stepstack.harness import metrics
from stepstack.harness.metrics import Metric, Question, scored
from stepstack.harness.task import Task
from stepstack.records import Problem

LABELS = {
    "sum": "sums right",
    "check": "reckons again",
    "firm": "firm at a wrong claim",
    "agree": "agrees to a right one",
}


def tasks(cfg: Config) -> list[Task]:
    """The splits of a config's data: the last question of each held-out conversation, ``test`` reported."""

    def split(name: Split) -> Task:
        return Task(
            name=name,
            version=1,
            about=f"the {name} split of {cfg.name}'s data",
            rows=lambda data: problems(cfg, name),
            request=request_of,
            score=exact,
            budget=cfg.answers,
            metrics=lambda budget: metrics_of(cfg, budget),
        )

    return [split(name) for name in SPLITS]


def request_of(problem: Problem) -> str | Sequence[Message]:
    """A question as servers take it: the texts of its messages."""
    asked = problem.meta["asked"]
    if isinstance(asked, Continuation):
        return asked.prompt
    return [Message(message["role"], written_text(message)) for message in asked.messages]


def metrics_of(cfg: Config, budget: Budget) -> list[Metric]:
    """Accuracy, and of drawn dialogues that of each kind; of rows how near the words come."""
    if isinstance(cfg.data, Dialogues):
        return [*metrics.of_samples(budget), *(_of_kind(kind) for kind in KINDS)]
    return [*metrics.of_samples(budget), metrics.part("similarity")]


def _of_kind(kind: str) -> Metric:
    def of(question: Question) -> float | None:
        values = [sample.parts[kind] for sample in scored(question) if kind in sample.parts]
        return fmean(values) if values else None

    return metrics.mean(LABELS[kind], of)
