"""Spoken benchmarks: an answer is a file of sound, heard by the config's recogniser and held against a voice.

The figures follow seed-tts-eval's protocol: the mean of each utterance's word (of Chinese: character) error rate, after
its normaliser. Their names hold the recogniser, the normaliser and the encoder of voices, so that figures of two of
them never stand in one column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.media import audio
from data.sets import seed_tts
from recipes.stepaudio.config import Benchmarks
from stepstack.config import ROOT
from stepstack.generation.prompts import Recording, Request, Resynthesis, SpeechPrompt
from stepstack.generation.types import Answer, Sampling
from stepstack.harness.metrics import Metric, Question, mean, part, scored
from stepstack.harness.task import Task
from stepstack.models.speech.config import EncoderConfig
from stepstack.models.speech.listeners import VoiceEncoder, open_encoder, open_recognizer
from stepstack.records import Problem, Score
from stepstack.scoring.speech import BAD, Normaliser, word_errors

RATE = 16000
ANY = audio.AudioLimits(least_rate=1, seconds=(1e-6, 1e6), peak=0.0, clipped=1.0)
SETS: dict[str, tuple[str, Normaliser, str]] = {  # task -> meta file, normaliser, what it is
    "seed_tts_en": ("en/meta.lst", "seed-en", "English, Common Voice"),
    "seed_tts_zh": ("zh/meta.lst", "seed-zh", "Chinese, DiDiSpeech"),
    "seed_tts_zh_hard": ("zh/hardcase.lst", "seed-zh", "Chinese, hard texts"),
}
RESYNTHESISED = ("seed_tts_en", "seed_tts_zh")  # sets that have recordings of their texts


@dataclass(frozen=True)
class SpokenJudge:
    """Parts of a score: ``wer``, ``failed`` (whether it is over a half), ``ended``; and with ``compared`` the
    ``similarity`` of the voice to that of the row's recording (``source``)."""

    cfg: Benchmarks
    normaliser: Normaliser
    compared: bool

    def __call__(self, answers: Sequence[Answer]) -> list[Score]:
        places = [k for k, answer in enumerate(answers) if answer.media]
        waves = [read(ROOT / answers[k].media[0]) for k in places]
        transcripts = open_recognizer(self.cfg.recognizer).transcribe(waves) if waves else []
        heard, sounds = dict(zip(places, transcripts, strict=True)), dict(zip(places, waves, strict=True))
        return [self._score(answer, heard.get(k, ""), sounds.get(k)) for k, answer in enumerate(answers)]

    def _score(self, answer: Answer, heard: str, wave: Tensor | None) -> Score:
        rate = word_errors(answer.problem.text, heard, self.normaliser).rate
        parts = {"wer": rate, "failed": float(rate > BAD), "ended": float(answer.finish == "stop")}
        if self.compared and self.cfg.encoder is not None:
            encoder = open_encoder(self.cfg.encoder)
            voice = None if wave is None else embedded(encoder, wave)
            wanted = voice_of(self.cfg.encoder, answer.problem.meta["source"])
            parts["similarity"] = 0.0 if voice is None else float(voice @ wanted)
        return Score(max(0.0, 1 - rate), parts, answer=heard)

    def facts(self) -> dict[str, Any]:
        """The models that judge, as plans name them."""
        encoder = self.cfg.encoder if self.compared else None
        return {
            "recognizer": asdict(self.cfg.recognizer),
            "encoder": None if encoder is None else asdict(encoder),
            "normaliser": self.normaliser,
        }

    def metrics(self) -> list[Metric]:
        unit = "CER" if self.normaliser == "seed-zh" else "WER"
        by = f"({self.cfg.recognizer.title}, {self.normaliser})"
        found = [
            part("wer", f"{unit} {by}", higher_is_better=False),
            part("failed", f"over 50% {by}", higher_is_better=False),
            part("ended"),
        ]
        if self.compared and self.cfg.encoder is not None:
            found.append(part("similarity", f"SIM ({self.cfg.encoder.title})"))
        return found


def read(file: Path) -> Tensor:
    """Wave of any sound at 16 kHz, whatever its quality."""
    return torch.from_numpy(audio.read_audio(file, RATE, ANY))


def embedded(encoder: VoiceEncoder, wave_T: Tensor) -> Tensor | None:
    """Unit vector of a voice, None of silence."""
    try:
        return encoder.embed(wave_T)
    except ValueError:
        return None


@cache
def voice_of(cfg: EncoderConfig, file: str) -> Tensor:
    """Unit vector of a recording. ValueError where it is silent."""
    return open_encoder(cfg).embed(read(Path(file)))


def seed_tasks(cfg: Benchmarks, max_tokens: int) -> list[Task]:
    """seed-tts-eval's sets, spoken in the voice of their prompts, and the recordings of their texts, resynthesised."""
    tasks = []
    for name, (file, normaliser, about) in SETS.items():
        path = f"{seed_tts.FOLDER}/{file}"
        rows = lambda data, path=path: seed_tts.problems(data / path)  # noqa: E731
        tasks.append(
            spoken_task(name, f"seed-tts-eval, {about}", rows, cloned, cfg, normaliser, max_tokens, temperature=0.7)
        )
    for name in RESYNTHESISED:
        file, normaliser, about = SETS[name]
        path = f"{seed_tts.FOLDER}/{file}"
        rows = lambda data, path=path: seed_tts.problems(data / path, recorded=True)  # noqa: E731
        words = f"recordings of seed-tts-eval, {about}, by the codec alone"
        tasks.append(spoken_task(f"{name}_resynthesis", words, rows, again, cfg, normaliser, max_tokens))
    return tasks


def cloned(problem: Problem) -> SpeechPrompt:
    """Text in the voice of the row's prompt."""
    recording = Recording(problem.meta["prompt_text"], Path(problem.meta["source"]))
    return SpeechPrompt(problem.text, reference=recording)


def again(problem: Problem) -> Resynthesis:
    return Resynthesis(problem.text, Path(problem.meta["source"]))


def spoken_task(
    name: str,
    about: str,
    rows: Callable[[Path], Sequence[Problem]],
    request: Callable[[Problem], Request],
    cfg: Benchmarks,
    normaliser: Normaliser,
    max_tokens: int,
    *,
    compared: bool = True,
    temperature: float = 0.0,
) -> Task:
    """A task whose answers are sounds."""
    judge = SpokenJudge(cfg, normaliser, compared)
    return Task(
        name=name,
        version=1,
        about=about,
        rows=rows,
        request=request,
        score=judge,
        budget=Sampling(temperature=temperature, max_tokens=max_tokens),
        metrics=lambda budget: judge.metrics(),
        judge=judge.facts,
    )


def by_group(name: str, group: str) -> Metric:
    """Mean of a part over the rows that have it: those of one group."""
    return mean(f"{name}, {group}", lambda question: _part(question, f"{name}/{group}"))


def _part(question: Question, key: str) -> float | None:
    values = [sample.parts[key] for sample in scored(question) if key in sample.parts]
    return sum(values) / len(values) if values else None
