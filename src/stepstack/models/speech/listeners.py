"""Recognisers and encoders of voices by their settings. Waves are at 16 kHz."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModelForAudioXVector, AutoProcessor, WhisperForConditionalGeneration

from stepstack.config import ConfigError
from stepstack.models.speech.config import (
    EncoderConfig,
    Paraformer,
    RecognizerConfig,
    Resemblyzer,
    TinyWhisper,
    WhisperFolder,
    Xvector,
)
from stepstack.models.speech.judges import SpeakerEncoder
from stepstack.models.speech.whisper import LONGEST, RATE, WhisperRecognizer
from stepstack.models.whole import load_whole


class Recognizer(Protocol):
    """Waves to their transcripts."""

    def transcribe(self, waves: Sequence[Tensor]) -> list[str]: ...


class VoiceEncoder(Protocol):
    """Waves to unit vectors of their voices."""

    def embed(self, wave_T: Tensor) -> Tensor:
        """Unit vector of a voice. ValueError for silence."""
        ...


@cache
def open_recognizer(cfg: RecognizerConfig) -> Recognizer:
    """Recogniser of settings, read once a process. ConfigError where its package or folder is missing."""
    match cfg:
        case TinyWhisper():
            return TinyRecognizer()
        case WhisperFolder():
            return FolderRecognizer(cfg)
        case Paraformer():
            return ParaformerRecognizer(cfg)


@cache
def open_encoder(cfg: EncoderConfig) -> VoiceEncoder:
    """Encoder of settings, read once a process. ConfigError where its package or folder is missing."""
    match cfg:
        case Resemblyzer():
            return SpeakerEncoder()
        case Xvector():
            return XvectorEncoder(cfg)


class TinyRecognizer:
    """Whisper tiny.en, which hears no more than the first 15 s: words after that count as not said."""

    def __init__(self) -> None:
        self.recognizer = WhisperRecognizer()

    def transcribe(self, waves: Sequence[Tensor]) -> list[str]:
        return self.recognizer.transcribe([wave[: round(LONGEST * RATE)] for wave in waves])


class FolderRecognizer:
    """Greedy transcripts of a Whisper in a folder, in its own window of 30 s."""

    def __init__(self, cfg: WhisperFolder):
        _folder(cfg.path)
        self.cfg = cfg
        self.processor = AutoProcessor.from_pretrained(cfg.path)
        self.model = load_whole(WhisperForConditionalGeneration, cfg.path).eval()

    @torch.no_grad()
    def transcribe(self, waves: Sequence[Tensor]) -> list[str]:
        texts: list[str] = []
        assert self.model.generation_config is not None
        many = self.model.generation_config.to_dict().get("is_multilingual", False)
        told = {"language": self.cfg.language, "task": "transcribe"} if many else {}
        for start in range(0, len(waves), self.cfg.batch):
            batch = [wave.numpy() for wave in waves[start : start + self.cfg.batch]]
            features = self.processor(batch, sampling_rate=RATE, return_tensors="pt").input_features
            ids = self.model.generate(features, do_sample=False, num_beams=1, **told)
            texts += self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


class ParaformerRecognizer:
    """Transcripts of FunASR's Paraformer in simplified characters, as seed-tts-eval makes them of Chinese."""

    def __init__(self, cfg: Paraformer):
        _folder(cfg.path)
        if missing := [name for name in ("funasr", "zhconv") if find_spec(name) is None]:
            raise ConfigError(f"benchmarks.recognizer=paraformer needs pip install {' '.join(missing)}")
        from funasr import AutoModel  # not on every machine: imported only where it is asked for
        from zhconv import convert

        self.model, self.convert = AutoModel(model=cfg.path, disable_update=True), convert

    def transcribe(self, waves: Sequence[Tensor]) -> list[str]:
        return [self.convert(self.model.generate(input=wave.numpy())[0]["text"], "zh-cn") for wave in waves]


class XvectorEncoder:
    """Embedding of a voice by an x-vector model in a folder."""

    def __init__(self, cfg: Xvector):
        _folder(cfg.path)
        self.extractor = AutoFeatureExtractor.from_pretrained(cfg.path)
        self.model = load_whole(AutoModelForAudioXVector, cfg.path).eval()

    @torch.no_grad()
    def embed(self, wave_T: Tensor) -> Tensor:
        if float(wave_T.abs().max()) < 1e-6:
            raise ValueError("a silent wave has no speaker")
        inputs = self.extractor(wave_T.numpy(), sampling_rate=RATE, return_tensors="pt")
        found = self.model(**inputs).embeddings[0]
        return found / found.norm()


def _folder(path: str) -> None:
    if not (Path(path) / "config.json").is_file() and not (Path(path) / "configuration.json").is_file():
        raise ConfigError(f"{path} holds no model (no config.json): get it first, and give its local folder")
