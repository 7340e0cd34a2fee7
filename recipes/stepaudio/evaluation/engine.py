"""The engine of evaluations: what a model speaks, and what a codec plays, as files of sound."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.media import audio
from stepstack.config import ROOT
from stepstack.generation.prompts import Resynthesis, SpeechPrompt
from stepstack.generation.types import Answer, Budget
from stepstack.harness.engine import Question
from stepstack.harness.engines.generator import GeneratorEngine
from stepstack.models.speech.tokenizer import RATE, Codes
from stepstack.models.speech.tokens import GROUP, TokenLayout
from stepstack.report import jsonl


@dataclass(frozen=True, slots=True)
class Codec:
    """Waves at 16 kHz to codes, and codes to waves at ``rate``; the voice of the second may be that of a recording."""

    encode: Callable[[Tensor], Codes]
    decode: Callable[[Codes, Path | None], Tensor]
    rate: int


class SpeechEngine:
    """A generator of audio tokens and the codec that plays them. Sounds go to runs/<name>/sounds, named by what is in
    them. Requests that ask for no file of sound are the generator's own."""

    def __init__(self, inner: GeneratorEngine, layout: TokenLayout, codec: Codec, folder: Path):
        self.inner, self.layout, self.codec, self.folder = inner, layout, codec, folder / "sounds"
        self.batch = inner.batch
        self.facts: Mapping[str, Any] = inner.facts

    def complete(self, questions: Sequence[Question], budget: Budget) -> Iterator[tuple[Question, list[Answer]]]:
        """Each question with its answers: first what is only resynthesised, then what the model speaks."""
        spoken = []
        for question in questions:
            if isinstance(question.request, Resynthesis):
                codes = self._codes(question.request)
                file = self._keep(self.codec.decode(codes, _source(question.request)))
                tokens = len(codes[0]) // 2 * GROUP
                answer = Answer(problem=question.problem, sample=0, finish="stop", media=(file,), tokens=tokens)
                yield question, [replace(answer, sample=number) for number in range(budget.n)]
            else:
                spoken.append(question)
        for question, answers in self.inner.complete(spoken, budget) if spoken else ():
            if isinstance(question.request, SpeechPrompt):
                voice = question.request.reference
                source = None if voice is None else voice.file
                yield question, [self._played(answer, source) for answer in answers]
            else:
                yield question, answers

    def loglikelihood(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        return self.inner.loglikelihood(pairs)

    def _codes(self, request: Resynthesis) -> Codes:
        if isinstance(request.sound, Path):
            return self.codec.encode(torch.from_numpy(audio.read_audio(request.sound, RATE)))
        return list(request.sound[0]), list(request.sound[1])

    def _played(self, answer: Answer, source: Path | None) -> Answer:
        """The answer with its sound; one of no whole group has none."""
        ids = self.layout.whole_groups(answer.ids or ())
        if not ids:
            return answer
        return replace(answer, media=(self._keep(self.codec.decode(self.layout.split(ids), source)),))

    def _keep(self, wave_T: Tensor) -> Path:
        """Write a sound, named by its content; returns its path from the repository."""
        content = audio.wav(wave_T.numpy(), self.codec.rate)
        file = self.folder / f"{hashlib.sha256(content).hexdigest()[:16]}.wav"
        if not file.is_file():
            jsonl.write_bytes_atomic(file, content)
        return file.relative_to(ROOT) if file.is_relative_to(ROOT) else file


def _source(request: Resynthesis) -> Path | None:
    return request.sound if isinstance(request.sound, Path) else None
