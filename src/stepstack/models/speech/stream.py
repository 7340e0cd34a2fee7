"""Codes to sound while they are still being made: chunk by chunk, each going on from the phase of the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stepstack.models.speech.decoder import FRAMES_A_GROUP
from stepstack.models.speech.mel import griffin_lim
from stepstack.models.speech.tokenizer import FRAMES, GROUP_SAMPLES, Codes
from stepstack.models.speech.tokens import LINGUISTIC, SEMANTIC

AHEAD = 1  # groups that must be known behind what is played: the decoder looks at them
BEFORE = 2  # groups that were played and that a chunk goes on from: two windows of Griffin-Lim and more


class MelDecoder(Protocol):
    """Decoder that shows its mel, such as ``ContextDecoder``: that of a group depends on ``AHEAD`` groups around it."""

    @property
    def steps(self) -> int:
        """Steps of Griffin-Lim."""
        ...

    def mel(self, codes: Codes) -> Tensor:
        """Log-mel [frames, bands] of whole groups."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamShape:
    """Groups of the first chunk, and of each one after it. A chunk costs about the same whatever its length, so that
    later ones are longer."""

    first: int = 2
    later: int = 6


class SpeechStream:
    """Decoder of a growing turn. ``push`` takes one group after the other and returns what can be played; ``finish``
    returns the rest. All pieces together have the samples of the whole, 1920 a group."""

    def __init__(self, decoder: MelDecoder, shape: StreamShape | None = None):
        self.decoder, self.shape = decoder, shape or StreamShape()
        self.codes: Codes = ([], [])
        self.played = 0  # groups
        self.tail = torch.zeros(0)  # the last samples that were played

    @property
    def groups(self) -> int:
        return len(self.codes[0]) // LINGUISTIC

    def push(self, linguistic: list[int], semantic: list[int]) -> Tensor:
        """Take one group of codes; samples that can be played now, often none. ValueError for more or less than one
        group."""
        if (len(linguistic), len(semantic)) != (LINGUISTIC, SEMANTIC):
            raise ValueError(f"a group is {LINGUISTIC} linguistic and {SEMANTIC} semantic codes")
        self.codes[0].extend(linguistic)
        self.codes[1].extend(semantic)
        wanted = self.shape.later if self.played else self.shape.first
        if self.groups - self.played < wanted + AHEAD:
            return torch.zeros(0)
        return self._play(self.groups - AHEAD)

    def finish(self) -> Tensor:
        """Samples of what was not played yet."""
        return self._play(self.groups) if self.groups > self.played else torch.zeros(0)

    def _play(self, end: int) -> Tensor:
        """Samples from the last played group up to ``end``. What lies behind ``end`` is decoded too, so that the chunk
        does not sound as if the speech ended there, and is thrown away."""
        start = max(0, self.played - BEFORE)
        first = max(0, start - AHEAD)  # the decoder looks back as far as it looks ahead
        codes = (self.codes[0][first * LINGUISTIC :], self.codes[1][first * SEMANTIC :])
        mel_FC = self.decoder.mel(codes)[(start - first) * FRAMES_A_GROUP :]
        wave = griffin_lim(mel_FC, FRAMES, self.decoder.steps, known_T=self.tail if len(self.tail) else None)
        piece = wave[(self.played - start) * GROUP_SAMPLES : (end - start) * GROUP_SAMPLES]
        self.tail = torch.cat([self.tail, piece])[-BEFORE * GROUP_SAMPLES :]
        self.played = end
        return piece
