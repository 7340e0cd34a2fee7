"""Judgement of spoken answers: decoded to waves, heard by a recogniser, held against speakers and durations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.drawn import sentences
from data.drawn.sentences import SPEEDS, Line
from data.errors import DataError
from data.sets.speech import DurationModel, Take
from recipes.stepaudio.config import Config, JudgeName, SpeechReward
from recipes.stepaudio.data import layout_of, load_decoder, recordings, text_tokenizer
from stepstack.config import ConfigError, digest
from stepstack.generation.types import Answer
from stepstack.models.speech.decoder import SpeechDecoder
from stepstack.models.speech.judges import GrammarRecognizer, SpeakerEncoder
from stepstack.models.speech.packages import RESEMBLYZER
from stepstack.models.speech.whisper import WhisperRecognizer
from stepstack.records import Score
from stepstack.rl.config import FileReward
from stepstack.rl.reward import Reward, load_reward
from stepstack.scoring.speech import word_errors

Transcribe = Callable[[Sequence[Tensor]], list[str]]
CENTROID_RECORDINGS = 20  # recordings of a speaker, as the codec plays them, whose mean is its centroid
_judges: dict[str, SpeechJudge] = {}  # of evaluations, by their config's digest


@dataclass(frozen=True)
class SpeechJudge:
    """Parts of a score: ``wer`` by the recogniser of the config, ``ended``, ``groups``, ``speed`` (whether the duration
    is nearest to that of the tag that was asked for); with Resemblyzer also ``similarity`` to the speaker's centroid
    and ``speaker`` (whether the nearest centroid is the one that was asked for)."""

    transcribe: Transcribe
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
            found = {} if wave is None else similarities(self.speakers, self.centroids, wave)
            parts["similarity"] = found.get(take.line.speaker, 0.0)
            parts["speaker"] = float(bool(found) and max(found, key=found.__getitem__) == take.line.speaker)
        return Score(max(0.0, 1 - rate), parts, answer=heard)

    def _speed(self, take: Take) -> str:
        expected = {tag: self.durations.groups(Line(take.line.text, take.line.speaker, tag)) for tag in SPEEDS}
        return min(expected, key=lambda tag: abs(expected[tag] - take.groups))


def transcriber(name: JudgeName) -> Transcribe:
    """Recogniser of a config's choice. ConfigError without its package, and for none."""
    match name:
        case "grammar":
            grammar = GrammarRecognizer(sentences.jsgf())
            return lambda waves: [grammar.transcribe(wave) for wave in waves]
        case "whisper":
            return WhisperRecognizer().transcribe
        case "none":
            raise ConfigError("judge=none hears nothing: set it to grammar or whisper")


def speaker_centroids(
    encoder: SpeakerEncoder, decoder: SpeechDecoder, takes: Sequence[Take], names: Iterable[str]
) -> dict[str, Tensor]:
    """Unit mean of the voice of each speaker of ``names`` in its first recordings, as the codec plays them. DataError
    for a speaker without a recording."""
    found = {}
    for name in names:
        own = [take for take in takes if take.line.speaker == name][:CENTROID_RECORDINGS]
        if not own:
            raise DataError(f"no recording of the speaker {name}, whose voice is asked for: record it (make data)")
        mean = torch.stack([encoder.embed(decoder.decode(take.codes)) for take in own]).mean(0)
        found[name] = mean / mean.norm()
    return found


def similarities(encoder: SpeakerEncoder, centroids: Mapping[str, Tensor], wave: Tensor) -> dict[str, float]:
    """Cosines of a wave's voice to the speakers' centroids; none for silence, which has no speaker."""
    try:
        voice = encoder.embed(wave)
    except ValueError:  # of silence, by which a take is not similar to anybody
        return {}
    return {name: float(voice @ centroid) for name, centroid in centroids.items()}


def open_judge(cfg: Config) -> SpeechJudge:
    """The judge of a config's evaluation, opened once. ConfigError where its recogniser's package is missing."""
    key = digest(cfg)  # a config may hold a dict, and has no hash then
    if key not in _judges:
        _judges[key] = speech_judge(cfg, cfg.judge, RESEMBLYZER.installed)
    return _judges[key]


def speech_judge(cfg: Config, name: JudgeName, voices: bool) -> SpeechJudge:
    """A judge by a recogniser, and by Resemblyzer where ``voices`` are judged. ConfigError for a missing package."""
    transcribe, decoder, takes = transcriber(name), load_decoder(cfg), recordings(cfg, "train")
    speakers = SpeakerEncoder() if voices else None
    centroids = {} if speakers is None else speaker_centroids(speakers, decoder, takes, cfg.drawn.names)
    return SpeechJudge(transcribe, decoder, DurationModel(takes), speakers, centroids)


def takes_of(cfg: Config, answers: Sequence[Answer]) -> list[Take]:
    """Takes of answers, whose ids are the model's."""
    layout = layout_of(cfg, text_tokenizer(cfg))
    return [
        Take(
            Line(answer.problem.text, answer.problem.meta["speaker"], answer.problem.meta["tag"]),
            layout.split(layout.whole_groups(answer.ids or ())),
            answer.finish == "stop",
        )
        for answer in answers
    ]


def score_answers(cfg: Config, answers: Sequence[Answer]) -> list[Score]:
    """Scores of spoken answers, by the config's judge."""
    return open_judge(cfg)(takes_of(cfg, answers))


def score_unheard(cfg: Config, answers: Sequence[Answer]) -> list[Score]:
    """Scores of spoken answers without a recogniser: whether they end by themselves, which says nothing of words."""
    return [Score(float(take.ended), {"ended": float(take.ended)}) for take in takes_of(cfg, answers)]


# -- the reward of reinforcement learning ---------------------------------------------------------------------------


def reward_of(cfg: Config) -> Reward:
    """The reward of the config's GRPO: that of the file which it names, else the rule of the recipe. ConfigError
    without a package that it needs."""
    assert cfg.rl is not None
    kind = cfg.rl.reward
    if isinstance(kind, FileReward):
        return load_reward(kind)
    judge = speech_judge(cfg, kind.judge, kind.similarity > 0)
    return lambda answers: [rewarded(kind, score) for score in judge(takes_of(cfg, answers))]


def rewarded(cfg: SpeechReward, score: Score) -> Score:
    """The judge's score with the reward for its value: weighted words and voice, 0 for a take that did not end by
    itself, whose last words nobody can blame or praise."""
    parts = score.parts
    words, voice = max(0.0, 1 - parts["wer"]), parts.get("similarity", 0.0)
    return replace(score, value=parts["ended"] * (cfg.wer * words + cfg.similarity * voice))
