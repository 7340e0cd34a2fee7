"""A turn that is heard while it is still being made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from data.drawn import sentences
from data.drawn.sentences import Line
from data.media import audio
from data.sets.speech import RATE
from recipes.stepaudio.config import Config
from recipes.stepaudio.data import layout_of, load_decoder, prompt_ids
from recipes.stepaudio.model import check_model, generator_of
from stepstack.generation.types import Prompt, Sampling
from stepstack.models.speech.stream import SpeechStream
from stepstack.models.speech.tokens import GROUP, TokenLayout
from stepstack.records import Problem


@dataclass(frozen=True, slots=True)
class Streamed:
    """Outcome of a streamed turn. Seconds are counted from when the model begins to read the prompt: until the first
    samples were on disk, and until the last token. ``before``: tokens that were sampled before the first samples."""

    samples: int
    tokens: int
    before: int
    first: float
    generated: float
    ended: bool

    def say(self, out: Path) -> str:
        cut = "" if self.ended else ", cut off: it did not end by itself"
        return (
            f"{out}: {self.samples / RATE:.2f} s; first audio after {self.first:.3f} s, by token {self.before} of "
            f"{self.tokens}, the last of which came after {self.generated:.3f} s{cut}"
        )


class Speaking:
    """Groups, sound, and samples in a growing file, of a stream of tokens."""

    def __init__(self, layout: TokenLayout, stream: SpeechStream, writer: audio.WavWriter):
        self.layout, self.stream, self.writer = layout, stream, writer
        self.group: list[int] = []
        self.samples = self.tokens = self.before = 0
        self.first: float | None = None

    def hear(self, token: int) -> None:
        """Take one sampled token; what can be played is on disk when this returns."""
        self.tokens += 1
        if not self.layout.first <= token < self.layout.vocab:
            return
        self.group.append(token)
        if len(self.group) == GROUP:
            self._write(self.stream.push(*self.layout.split(self.group)))
            self.group = []

    def finish(self) -> None:
        self._write(self.stream.finish())

    def _write(self, piece: torch.Tensor) -> None:
        if len(piece):
            self.writer.write(piece.numpy())
            self.samples += len(piece)
            if self.first is None:
                self.first, self.before = time.perf_counter(), self.tokens


def stream(cfg: Config, line: Line, folder: Path, out: Path, temperature: float, seed: int) -> Streamed:
    """Write a WAV of a spoken line chunk by chunk, from before the model has said its last token. ConfigError for a
    line that the model cannot say, or a folder without a model."""
    sentences.check_line(line, cfg.drawn)
    check_model(cfg, folder)
    generator, tokenizer = generator_of(cfg, folder, torch.device("cpu"))
    layout = layout_of(cfg, tokenizer)
    prompt = Prompt(Problem(0, line.text, ""), prompt_ids(line, tokenizer))
    sampling = Sampling(temperature=temperature, seed=seed, max_tokens=cfg.max_tokens)
    decoder = load_decoder(cfg)
    with audio.WavWriter(out, RATE) as writer:
        speaking = Speaking(layout, SpeechStream(decoder), writer)
        began = time.perf_counter()
        rollout = generator.stream(prompt, sampling, speaking.hear)
        generated = time.perf_counter() - began
        speaking.finish()
    first = (speaking.first or time.perf_counter()) - began
    return Streamed(speaking.samples, len(rollout.ids), speaking.before, first, generated, rollout.finish == "stop")
