"""Tokenizers of speech behind one protocol: the offline pair of codebooks, and Step-Audio's published pair."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stepstack.config import ConfigError
from stepstack.models.speech.codebook import Codebook, nearest
from stepstack.models.speech.mel import MelSpec, log_mel, whisper_mel

RATE = 16000
GROUP_SAMPLES = 1920  # 120 ms
STACKED = 4  # mel frames of a semantic code
LEAST_SAMPLES = 1920
FRAMES = MelSpec()  # spectrogram of the offline semantic codes, and of what is decoded from them
FILES = ("linguistic.safetensors", "semantic.safetensors")

Codes = tuple[list[int], list[int]]


class SpeechTokenizer(Protocol):
    """Waves to the two streams of codes."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Entries of the linguistic and of the semantic codebook."""
        ...

    @property
    def digest(self) -> str:
        """Digest of both codebooks; a token file of another one is refused."""
        ...

    def encode(self, wave_T: Tensor) -> Codes:
        """Linguistic codes at 16.67 Hz and semantic ones at 25 Hz of a wave at 16 kHz. ValueError for one under
        120 ms."""
        ...


@dataclass(frozen=True)
class OfflineTokenizer:
    """Tokenizer without published weights but Whisper's: k-means of features of its encoder, and of log-mels.

    ``encoder`` gives Whisper's hidden states [frames, width] at 50 Hz of a wave, as many as it has whole 20 ms; None
    where tokens are only decoded.
    """

    linguistic: Codebook
    semantic: Codebook
    encoder: Callable[[Tensor], Tensor] | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        return len(self.linguistic), len(self.semantic)

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.linguistic.digest}{self.semantic.digest}".encode()).hexdigest()[:16]

    def encode(self, wave_T: Tensor) -> Codes:
        if self.encoder is None:
            raise ConfigError("this tokenizer only decodes: encoding needs Whisper's encoder (make setup EXTRAS=audio)")
        return (
            self.linguistic.encode(linguistic_features(wave_T, self.encoder)),
            self.semantic.encode(semantic_features(wave_T)),
        )

    def save(self, folder: Path) -> None:
        for name, codebook in zip(FILES, (self.linguistic, self.semantic), strict=True):
            codebook.save(folder / name)

    @classmethod
    def load(cls, folder: Path, encoder: Callable[[Tensor], Tensor] | None = None) -> OfflineTokenizer:
        linguistic, semantic = (Codebook.load(folder / name) for name in FILES)
        return cls(linguistic, semantic, encoder)


def linguistic_features(wave_T: Tensor, encoder: Callable[[Tensor], Tensor]) -> Tensor:
    """Means of three hidden states of Whisper's encoder, [frames at 16.67 Hz, width]."""
    hidden_FD = encoder(_long_enough(wave_T))
    whole = len(wave_T) // 960
    return hidden_FD[: whole * 3].unflatten(0, (whole, 3)).mean(1)


def semantic_features(wave_T: Tensor) -> Tensor:
    """Four log-mel frames behind each other, [frames at 25 Hz, 320]."""
    frames_FC = log_mel(_long_enough(wave_T), FRAMES)
    whole = len(wave_T) // (STACKED * FRAMES.hop)
    return frames_FC[: whole * STACKED].reshape(whole, STACKED * FRAMES.mels)


def _long_enough(wave_T: Tensor) -> Tensor:
    if len(wave_T) < LEAST_SAMPLES:
        raise ValueError(f"{len(wave_T)} samples are under {GROUP_SAMPLES}, one group of tokens")
    return wave_T


class PublishedTokenizer:
    """Step-Audio's pair from a folder: ``linguistic_tokenizer.npy`` and ``speech_tokenizer_v1.onnx``.

    The linguistic features are those of FunASR's streaming Paraformer, which no package index carries: ``paraformer``
    gives its encoder's output [frames at 16.67 Hz, width] of a wave, by ``funasr`` where that is installed
    (docs/audio.md). The semantic part takes Whisper's log-mel of 128 bands in pieces of 30 s.
    """

    PIECE = 30 * RATE
    LEAST_PIECE = 480  # samples; a shorter rest is left out, as in the released code

    def __init__(self, folder: Path, paraformer: Callable[[Tensor], Tensor], session: Any = None):
        """``session``: an onnxruntime session in place of the folder's file. ConfigError for missing files."""
        wanted = ["linguistic_tokenizer.npy"] + (["speech_tokenizer_v1.onnx"] if session is None else [])
        if missing := [name for name in wanted if not (folder / name).is_file()]:
            raise ConfigError(f"{folder} lacks {' and '.join(missing)}: give the folder of Step-Audio-Tokenizer")
        self.means_VD = torch.from_numpy(np.load(folder / wanted[0])).float()
        self.paraformer = paraformer
        content = [(folder / name).read_bytes() for name in wanted]
        self._digest = hashlib.sha256(b"".join(content)).hexdigest()[:16]
        if session is None:
            import onnxruntime  # an extra: imported only where it is needed

            session = onnxruntime.InferenceSession(str(folder / wanted[1]))
        self.session = session

    @property
    def sizes(self) -> tuple[int, int]:
        return len(self.means_VD), 4096

    @property
    def digest(self) -> str:
        return self._digest

    def encode(self, wave_T: Tensor) -> Codes:
        _long_enough(wave_T)
        linguistic = nearest(self.paraformer(wave_T), self.means_VD).tolist()
        semantic: list[int] = []
        for piece in wave_T.split(self.PIECE):
            if len(piece) >= self.LEAST_PIECE:
                semantic += self._semantic(piece)
        return linguistic, semantic

    def _semantic(self, piece_T: Tensor) -> list[int]:
        features = whisper_mel(piece_T, mels=128)[None].numpy()
        names = [item.name for item in self.session.get_inputs()]
        length = np.array([features.shape[2]], dtype=np.int32)
        codes = self.session.run(None, {names[0]: features, names[1]: length})[0].flatten().tolist()
        if abs(len(codes) - 25 * len(piece_T) / RATE) > 2:
            raise ValueError(f"{len(codes)} semantic codes for {len(piece_T) / RATE:.2f} s, expected 25 a second")
        return codes
