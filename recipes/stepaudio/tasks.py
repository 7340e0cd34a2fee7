"""Evaluation tasks: held-out lines, spoken; and the same texts with speakers and tags swapped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from data.drawn import sentences
from data.drawn.sentences import Line
from recipes.stepaudio.config import Config
from recipes.stepaudio.data import prompt_text, split_lines
from recipes.stepaudio.model import line_of
from recipes.stepaudio.reward import score_answers
from stepstack.generation.types import Budget, Sampling
from stepstack.harness.metrics import Metric, part
from stepstack.harness.task import Task
from stepstack.models.speech.packages import RESEMBLYZER
from stepstack.records import Problem


def tasks(cfg: Config) -> list[Task]:
    """``test``: unseen texts; ``swapped``: the same with another speaker and tag; ``select``: what is watched."""
    lines = {
        "test": lambda: split_lines(cfg, "test"),
        "swapped": lambda: [sentences.swapped(line) for line in split_lines(cfg, "test")],
        "select": lambda: split_lines(cfg, "select"),
    }
    return [
        Task(
            name=name,
            version=1,
            about=f"{name}: texts that {cfg.name} never learned, spoken and heard by {cfg.judge}",
            rows=lambda data, make=make: problems(make()),  # type: ignore[misc]
            request=lambda problem: prompt_text(line_of(dict(problem.meta), problem.text)),
            score=partial(score_answers, cfg),
            budget=Sampling(temperature=0.0, max_tokens=cfg.max_tokens),
            metrics=metrics,
        )
        for name, make in lines.items()
    ]


def problems(lines: Sequence[Line]) -> list[Problem]:
    return [
        Problem(k, line.text, line.text, {"speaker": line.speaker, "tag": line.tag}) for k, line in enumerate(lines)
    ]


def metrics(budget: Budget) -> list[Metric]:
    """Mean word error rate of utterances first (seed-tts-eval's mean), then the rest of the judge's parts."""
    found = [part("wer", higher_is_better=False), part("ended"), part("speed", "speed tag")]
    if RESEMBLYZER.installed:
        found += [part("similarity", "similarity (Resemblyzer)"), part("speaker", "speaker tag")]
    return found
