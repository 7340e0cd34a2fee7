"""Recognisers and encoders of voices that benchmarks of speech may ask. No torch.

Each has a ``title``, which names its figures: a word error rate says by whom it was heard, a similarity by which
encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from stepstack.bounds import Text
from stepstack.config import Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyWhisper(Strict):
    """Whisper tiny.en out of a package, which hears 15 seconds."""

    type: Literal["tiny_en"] = "tiny_en"
    """Choice of the recogniser: Whisper tiny.en."""

    @property
    def title(self) -> str:
        return "whisper-tiny.en"


@dataclass(frozen=True, kw_only=True, slots=True)
class WhisperFolder(Strict):
    """A Whisper of transformers in a local folder, such as whisper-large-v3, which seed-tts-eval takes for English."""

    type: Literal["whisper"] = "whisper"
    """Choice of the recogniser: a Whisper in a folder."""
    path: Text
    """Folder of the model and its processor."""
    language: str = "english"
    """Language that it is told to hear; an English-only model is told none."""
    batch: PositiveInt = 8
    """Waves that it hears together."""

    @property
    def title(self) -> str:
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True, slots=True)
class Paraformer(Strict):
    """FunASR's Paraformer in a local folder, seed-tts-eval's recogniser of Chinese, made simplified by zhconv."""

    type: Literal["paraformer"] = "paraformer"
    """Choice of the recogniser: Paraformer."""
    path: Text
    """Folder of the model, such as paraformer-zh."""

    @property
    def title(self) -> str:
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True, slots=True)
class Resemblyzer(Strict):
    """Resemblyzer's GE2E encoder out of a package."""

    type: Literal["resemblyzer"] = "resemblyzer"
    """Choice of the encoder: Resemblyzer."""

    @property
    def title(self) -> str:
        return "Resemblyzer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Xvector(Strict):
    """An x-vector model of transformers in a local folder, such as wavlm-base-plus-sv. The WavLM-large that
    seed-tts-eval asks has another form, which transformers does not read."""

    type: Literal["xvector"] = "xvector"
    """Choice of the encoder: an x-vector model in a folder."""
    path: Text
    """Folder of the model and its feature extractor."""

    @property
    def title(self) -> str:
        return Path(self.path).name


RecognizerConfig = TinyWhisper | WhisperFolder | Paraformer
EncoderConfig = Resemblyzer | Xvector
