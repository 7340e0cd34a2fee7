"""Evaluation tasks: held-out lines, spoken; and the same texts with speakers and tags swapped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from data.drawn import sentences
from data.drawn.sentences import Line, Sentences
from data.sets.speech import Take
from recipes.stepaudio.config import PLAYED, Config
from recipes.stepaudio.data import prompt_text, recordings, split_lines
from recipes.stepaudio.evaluation.chats import chat_tasks
from recipes.stepaudio.evaluation.spoken import seed_tasks, spoken_task
from recipes.stepaudio.model import line_of
from recipes.stepaudio.released.data import takes
from recipes.stepaudio.reward import score_answers, score_unheard
from stepstack.generation.prompts import Resynthesis, SpeechPrompt
from stepstack.generation.types import Budget, Sampling
from stepstack.harness.metrics import Metric, part
from stepstack.harness.task import Task
from stepstack.models.speech.packages import RESEMBLYZER
from stepstack.records import Problem

LINES = 12  # of the task that needs no recogniser, and of the report


def tasks(cfg: Config) -> list[Task]:
    """``test``: unseen texts; ``swapped``: the same with another speaker and tag; ``select``: what is watched;
    ``played``: a few of the unseen texts, for a report of a machine without a recogniser."""
    if not isinstance(cfg.data, Sentences):
        return benchmarks(cfg)
    own = {
        "test": lambda: split_lines(cfg, "test"),
        "swapped": lambda: [sentences.swapped(line, cfg.drawn) for line in split_lines(cfg, "test")],
        "select": lambda: split_lines(cfg, "select"),
    }
    drawn = [
        Task(
            name=name,
            version=1,
            about=f"{name}: texts that {cfg.name} never learned, spoken and heard by {cfg.judge}",
            rows=lambda data, make=make: problems(make()),  # type: ignore[misc]
            request=lambda problem: prompt_text(line_of(dict(problem.meta), problem.text)),
            score=partial(score_answers, cfg),
            budget=Sampling(temperature=0.0, max_tokens=cfg.max_tokens),
            metrics=metrics,
            judge=lambda: {"recognizer": cfg.judge, "voices": RESEMBLYZER.installed},
        )
        for name, make in own.items()
    ]
    played = Task(
        name=PLAYED,
        version=1,
        about=f"{PLAYED}: texts that {cfg.name} never learned, spoken for the report; nobody hears their words",
        rows=lambda data: problems(split_lines(cfg, "test")[:LINES]),
        request=drawn[0].request,
        score=partial(score_unheard, cfg),
        budget=drawn[0].budget,
        metrics=lambda budget: [part("ended")],
    )
    return [*drawn, played, *benchmarks(cfg)]


def benchmarks(cfg: Config) -> list[Task]:
    """Tasks whose answers are files of sound: the test lines (``clips``, which can be voted on), their recordings as
    the codec plays them (``resynthesis``), seed-tts-eval's sets, and questions that a served model answers."""
    kind, most = cfg.benchmarks, cfg.max_tokens
    temperature = 0.0 if isinstance(cfg.data, Sentences) else 0.7  # the released code's

    @cache
    def recorded() -> list[Take]:
        return recordings(cfg, "test") if isinstance(cfg.data, Sentences) else takes(cfg, "test")

    def clips(data: Path) -> list[Problem]:
        lines = [take.line for take in recorded()]
        return [Problem(k, line.text, line.key, {"line": line.key}) for k, line in enumerate(lines)]

    def spoken(problem: Problem) -> SpeechPrompt:
        line = recorded()[problem.index].line
        return SpeechPrompt(line.text, line.speaker, line.tag)

    def played(problem: Problem) -> Resynthesis:
        linguistic, semantic = recorded()[problem.index].codes
        return Resynthesis(problem.text, (tuple(linguistic), tuple(semantic)))

    task = partial(spoken_task, rows=clips, cfg=kind, normaliser=kind.normaliser, max_tokens=most, compared=False)
    return [
        task("clips", "unseen texts as sounds", request=spoken, temperature=temperature),
        task("resynthesis", "the codec alone: recordings of the same texts", request=played),
        *seed_tasks(kind, most),
        *chat_tasks(kind),
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
