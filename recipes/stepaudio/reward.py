"""Judgement of spoken answers: decoded to waves, heard by a recogniser, held against speakers and durations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from data.drawn import sentences
from data.drawn.sentences import SPEAKERS, SPEEDS, Line
from data.sets.speech import DurationModel, Take
from recipes.stepaudio.config import Config
from recipes.stepaudio.data import layout_of, load_decoder, recordings, text_tokenizer
from stepstack.generation.types import Answer
from stepstack.models.speech.decoder import SpeechDecoder
from stepstack.models.speech.judges import GrammarRecognizer, SpeakerEncoder
from stepstack.models.speech.packages import RESEMBLYZER
from stepstack.models.speech.tokenizer import Codes
from stepstack.models.speech.whisper import WhisperRecognizer
from stepstack.records import Score
from stepstack.scoring.speech import word_errors

CENTROID_RECORDINGS = 20  # recordings of a speaker, as the codec plays them, whose mean is its centroid


@dataclass(frozen=True)
class SpeechJudge:
    """Parts of a score: ``wer`` by the recogniser of the config, ``ended``, ``groups``, ``speed`` (whether the duration
    is nearest to that of the tag that was asked for); with Resemblyzer also ``similarity`` to the speaker's centroid
    and ``speaker`` (whether the nearest centroid is the one that was asked for)."""

    transcribe: Callable[[Sequence[Tensor]], list[str]]
    decoder: SpeechDecoder
    durations: DurationModel
    speakers: SpeakerEncoder | None
    centroids: dict[str, Tensor]

    def __call__(self, takes: Sequence[Take]) -> list[Score]:
        """Scores of takes, the value being one less the word error rate, at least 0."""
        spoken = [k for k, take in enumerate(takes) if take.groups]
        waves = [self.decoder.decode(takes[k].codes) for k in spoken]
        heard = dict(zip(spoken, self.transcribe(waves) if waves else [], strict=True))
        sounds = dict(zip(spoken, waves, strict=True))
        return [self._score(take, heard.get(k, ""), sounds.get(k)) for k, take in enumerate(takes)]

    def _score(self, take: Take, heard: str, wave: Tensor | None) -> Score:
        rate = word_errors(take.line.text, heard, "spoken-en").rate
        parts = {"wer": rate, "ended": float(take.ended), "groups": float(take.groups)}
        parts["speed"] = float(self._speed(take) == take.line.tag)
        if self.speakers is not None:
            found = {} if wave is None else self._similarities(wave)
            parts["similarity"] = found.get(take.line.speaker, 0.0)
            parts["speaker"] = float(bool(found) and max(found, key=found.__getitem__) == take.line.speaker)
        return Score(max(0.0, 1 - rate), parts, answer=heard)

    def _speed(self, take: Take) -> str:
        expected = {tag: self.durations.groups(Line(take.line.text, take.line.speaker, tag)) for tag in SPEEDS}
        return min(expected, key=lambda tag: abs(expected[tag] - take.groups))

    def _similarities(self, wave: Tensor) -> dict[str, float]:
        assert self.speakers is not None
        try:
            voice = self.speakers.embed(wave)
        except ValueError:  # silence has no speaker, which is a wrong one
            return {}
        return {name: float(voice @ centroid) for name, centroid in self.centroids.items()}


@cache
def open_judge(cfg: Config) -> SpeechJudge:
    """The judge of a config's evaluation. ConfigError where its recogniser's package is missing."""
    grammar = GrammarRecognizer(sentences.jsgf()) if cfg.judge == "grammar" else None
    transcribe: Callable[[Sequence[Tensor]], list[str]]
    if grammar is not None:
        transcribe = lambda waves: [grammar.transcribe(wave) for wave in waves]  # noqa: E731
    else:
        transcribe = WhisperRecognizer().transcribe
    decoder, takes = load_decoder(cfg), recordings(cfg, "train")
    speakers, centroids = None, {}
    if RESEMBLYZER.installed:
        speakers = SpeakerEncoder()
        for name in SPEAKERS:
            own = [take for take in takes if take.line.speaker == name][:CENTROID_RECORDINGS]
            mean = torch.stack([speakers.embed(decoder.decode(take.codes)) for take in own]).mean(0)
            centroids[name] = mean / mean.norm()
    return SpeechJudge(transcribe, decoder, DurationModel(takes), speakers, centroids)


def take_of(cfg: Config, answer: Answer) -> Take:
    """Take of an answer, whose ids are the model's."""
    layout = layout_of(cfg, text_tokenizer(cfg))
    meta = answer.problem.meta
    line = Line(answer.problem.text, meta["speaker"], meta["tag"])
    codes: Codes = layout.split(layout.whole_groups(answer.ids or ()))
    return Take(line, codes, answer.finish == "stop")


def score_answers(cfg: Config, answers: Sequence[Answer]) -> list[Score]:
    """Scores of spoken answers, by the config's judge."""
    return open_judge(cfg)([take_of(cfg, answer) for answer in answers])
