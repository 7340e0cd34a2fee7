"""Evaluation tasks: an answer is the file of a clip. The gold of drawn clips is the motion that was asked for; clips of
one's own are compared with the true ones, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from data.drawn import moving
from data.drawn.moving import Clip, FirstFrame, Moving
from data.sets.captioned import CaptionedClip
from recipes.stepvideo.config import Config, OwnClips, PreparedClips
from recipes.stepvideo.evaluation import frechet
from recipes.stepvideo.model import PALETTE, clips_of
from stepstack.config import ROOT, ConfigError
from stepstack.generation.prompts import ClipPrompt
from stepstack.generation.types import Answer, ClipBudget
from stepstack.harness.metrics import Metric, Question, corpus, mean, part, scored
from stepstack.harness.task import Task
from stepstack.records import Problem, Score
from stepstack.scoring import video as scoring

MOTION_FRAMES = 40  # first frames of the task that asks for every motion score


def judge(clip: NDArray[np.uint8], asked: Clip, data: Moving) -> dict[str, float]:
    """The parts of a score. ``direction``: found as asked, of a still clip: nothing moved. ``error``: of the track, in
    pixels. ``colour``: as asked in every frame. ``psnr``: of the first frame, dB. ``moved``: pixels, end to end."""
    motion = scoring.track_motion(clip, PALETTE)
    direction = asked.direction if asked.score else None
    return {
        "direction": float(motion.whole and motion.direction == direction),
        "error": scoring.trajectory_error(motion.track, asked.track(data.frames)),
        "colour": float(set(motion.colours) == {asked.colour}),
        "psnr": scoring.psnr(clip[0], moving.render(asked, data)[0]),
        "moved": motion.moved,
        "straight": scoring.straightness(motion.track) if motion.whole else 0.0,
        "asked": asked.score,
    }


def tasks(cfg: Config) -> list[Task]:
    """The tasks of the config's data; none of prepared clips."""
    match cfg.data:
        case Moving():
            return drawn_tasks(cfg, cfg.data)
        case OwnClips():
            return [own_task(cfg)]
        case PreparedClips():
            return []


def own_task(cfg: Config) -> Task:
    """``test`` of one's own clips: from its first frame, its caption and its motion score a held-out clip is made."""
    return Task(
        name="test",
        version=1,
        about=f"test: held-out clips of {cfg.name}",
        rows=lambda folder: [Problem(i, clip.prompt, clip.name) for i, clip in enumerate(clips_of(cfg, "test"))],
        request=lambda problem: own_prompt(clips_of(cfg, "test")[problem.index]),
        score=lambda answers: [_compared(answer, clips_of(cfg, "test")[answer.problem.index]) for answer in answers],
        budget=ClipBudget(),
        metrics=lambda budget: [part("psnr", "first frame PSNR"), part("clip_psnr", "clip PSNR")],
    )


def own_prompt(clip: CaptionedClip) -> ClipPrompt:
    """The request of a clip of one's own: its first frame, its caption and its motion score, and nothing else."""
    return ClipPrompt((OwnFirstFrame(clip),), clip.prompt, clip.motion, key=clip.name, lossless=True)


@dataclass(frozen=True, slots=True)
class OwnFirstFrame:
    """First frame of a clip, as a picture."""

    clip: CaptionedClip

    def image(self) -> Image.Image:
        return Image.fromarray(self.clip.frames()[0])


def compare(video: NDArray[np.uint8], true: NDArray[np.uint8]) -> dict[str, float]:
    """PSNR in dB of a generated clip against the true one: of the first frame, and of the whole clip."""
    return {"psnr": scoring.psnr(video[0], true[0]), "clip_psnr": scoring.psnr(video, true)}


def _compared(answer: Answer, clip: CaptionedClip) -> Score:
    [file] = answer.media
    parts = compare(read(ROOT / file), clip.frames())
    return Score(parts["clip_psnr"], parts)


def true_frames(cfg: Config, problem: Problem) -> NDArray[np.uint8]:
    """The true clip [F, Y, X, RGB] of a problem, from its gold. ConfigError where the data is prepared."""
    match cfg.data:
        case Moving():
            return moving.render(clip_in(problem), cfg.data)
        case OwnClips():
            return clips_of(cfg, "test")[problem.index].frames()
        case PreparedClips():
            raise ConfigError("these tasks are of clips that the run makes: data.type must be moving or clips")


def drawn_tasks(cfg: Config, data: Moving) -> list[Task]:
    """``test``: held-out clips; ``swapped``: their first frames, told to move another way; ``motion``: first frames at
    every motion score; ``select``: what is watched in training; ``frechet``: how far clips of ``test`` are from true
    ones as a set."""
    rows = {
        "test": lambda: moving.clips(data, "test"),
        "swapped": lambda: moving.with_other_directions(moving.clips(data, "test")),
        "motion": lambda: moving.with_each_score(moving.clips(data, "test")[:MOTION_FRAMES], data.scores),
        "select": lambda: moving.clips(data, "select"),
    }
    split_tasks = [_task(cfg.name, name, data, make) for name, make in rows.items()]
    far = frechet.figures(data, lambda text: read(ROOT / text))
    about = f"frechet: clips of {cfg.name} and true ones, as FVD compares them; trains a classifier"
    return [*split_tasks, replace(split_tasks[0], name="frechet", about=about, metrics=lambda budget: far)]


def _task(run: str, name: str, data: Moving, draw: Callable[[], list[Clip]]) -> Task:
    return Task(
        name=name,
        version=1,
        about=f"{name}: clips of {run}",
        rows=lambda folder: [Problem(i, clip.prompt, clip) for i, clip in enumerate(draw())],
        request=lambda problem: prompt_of(clip_in(problem), data),
        score=lambda answers: [_score(answer, data) for answer in answers],
        budget=ClipBudget(),
        metrics=lambda budget: metrics_of(name),
    )


def clip_in(problem: Problem) -> Clip:
    """The drawn clip that a problem asks for."""
    assert isinstance(problem.gold, Clip)
    return problem.gold


def prompt_of(clip: Clip, data: Moving) -> ClipPrompt:
    """The request of a drawn clip: its first frame, its prompt and its motion score, and nothing else."""
    return ClipPrompt((FirstFrame(clip, data),), clip.prompt, clip.score, key=clip.write(), lossless=True)


def _score(answer: Answer, data: Moving) -> Score:
    [file] = answer.media
    parts = judge(read(ROOT / file), clip_in(answer.problem), data)
    return Score(parts["direction"], parts)


def metrics_of(name: str) -> list[Metric]:
    """Figures of a task. Only clips that are to move count for the direction, only still ones for the drift."""
    if name == "motion":
        return [corpus("rank correlation", correlation)]
    return [
        mean("direction", lambda question: _mean(question, "direction", lambda p: p["asked"] > 0)),
        mean("direction, new prompts", _unseen),
        part("error", "track error", higher_is_better=False),
        part("colour", "colour kept"),
        part("psnr", "first frame PSNR"),
        mean("drift", lambda question: _mean(question, "moved", lambda p: p["asked"] == 0), higher_is_better=False),
        part("straight", "straightness"),
    ]


def correlation(questions: Sequence[Question]) -> float | None:
    """Spearman's, of motion score and pixels moved."""
    rows = [sample.parts for question in questions for sample in scored(question)]
    return scoring.rank_correlation([row["asked"] for row in rows], [row["moved"] for row in rows])


def _mean(question: Question, name: str, counts: Callable[[dict[str, float]], bool]) -> float | None:
    values = [sample.parts[name] for sample in scored(question) if counts(dict(sample.parts))]
    return fmean(values) if values else None


def _unseen(question: Question) -> float | None:
    if not moving.is_held_out_prompt(question[0].problem):
        return None
    return _mean(question, "direction", lambda parts: parts["asked"] > 0)


@cache
def read(file: Path) -> NDArray[np.uint8]:
    """The frames of an animated PNG."""
    with Image.open(file) as image:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
