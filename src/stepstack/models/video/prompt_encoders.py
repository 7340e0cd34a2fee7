"""Encoders of prompts to the two sequences that Step-Video's DiT attends to: tokens of a language model, and of CLIP.

Shapes: B prompts, L tokens, T width of a token. CLIP's sequence always has its full length, and all its tokens count.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORD = re.compile(r"[぀-ヿ㐀-鿿]|\w+|[^\w\s]")  # a character of Chinese or Japanese is a word


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoded prompts. ``mask_BL``: true where there is text."""

    text_BLC: Tensor
    mask_BL: Tensor
    clip_BMC: Tensor


@dataclass(frozen=True, slots=True)
class CutPrompts:
    """Number of prompts of which the language model, and CLIP, sees only the start."""

    language: int = 0
    clip: int = 0

    def __bool__(self) -> bool:
        return bool(self.language or self.clip)

    def __str__(self) -> str:
        return f"{self.language} are cut for the language model and {self.clip} for CLIP, which see only their start"


class PromptEncoder(Protocol):
    """Encoder of prompts. ``widths``: widths of the two kinds of tokens, called text_channels by the DiT. ``lengths``:
    tokens that each of the two takes; what a prompt has beyond is cut off."""

    widths: tuple[int, int]
    lengths: tuple[int, int]

    def cut(self, prompts: Sequence[str]) -> CutPrompts:
        """Number of prompts that ``encode`` cuts."""
        ...

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Encoded prompts. ValueError for an empty list."""
        ...


class WordHashes:
    """Frozen random vectors, one a word, plus sinusoids of its place. Any prompt encodes, and nothing is learned or
    loaded.

    There are two of them, like the two encoders. Another word gets another vector. A prompt longer than ``lengths`` is
    cut, like by the real encoders.
    """

    def __init__(self, widths: tuple[int, int] = (32, 32), lengths: tuple[int, int] = (16, 8)):
        self.widths, self.lengths = widths, lengths
        self._known: dict[tuple[str, str, int], Tensor] = {}

    def cut(self, prompts: Sequence[str]) -> CutPrompts:
        counts = [len(WORD.findall(prompt.lower())) for prompt in prompts]  # one place is the end token's
        return CutPrompts(*(sum(count > length - 1 for count in counts) for length in self.lengths))

    def encode(self, prompts: Sequence[str]) -> Encoded:
        if not prompts:
            raise ValueError("no prompts to encode: give at least one")
        words = [WORD.findall(prompt.lower()) for prompt in prompts]
        text, mask = self._sequences(words, "language", self.widths[0], self.lengths[0])
        clip, _ = self._sequences(words, "clip", self.widths[1], self.lengths[1])
        return Encoded(text, mask, clip)

    def _sequences(self, prompts: list[list[str]], kind: str, width: int, length: int) -> tuple[Tensor, Tensor]:
        """Sequences padded by an end token, which counts as text: the empty prompt has one."""
        rows = [(words[: length - 1] + [""] * length)[:length] for words in prompts]
        vectors = torch.stack([torch.stack([self._vector(word, kind, width) for word in row]) for row in rows])
        ends = torch.tensor([min(len(words), length - 1) for words in prompts])
        return vectors + 0.5 * _places(length, width), torch.arange(length) <= ends[:, None]

    def _vector(self, word: str, kind: str, width: int) -> Tensor:
        key = (word, kind, width)
        if key not in self._known:
            seed = int.from_bytes(hashlib.sha256(f"{kind} {word}".encode()).digest()[:8]) >> 1
            self._known[key] = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        return self._known[key]


class TransformersEncoders:
    """Last hidden states of a language model and of a CLIP-like text model. Step-Video takes 320 and 77 tokens."""

    def __init__(
        self,
        language: tuple[PreTrainedModel, PreTrainedTokenizerBase],
        clip: tuple[PreTrainedModel, PreTrainedTokenizerBase],
        lengths: tuple[int, int] = (320, 77),
    ):
        self.language, self.clip, self.lengths = language, clip, lengths
        self.widths = tuple(model.config.hidden_size for model, _ in (language, clip))

    def cut(self, prompts: Sequence[str]) -> CutPrompts:
        return CutPrompts(
            *(
                sum(len(ids) > length for ids in tokenizer(list(prompts))["input_ids"]) if prompts else 0
                for (_, tokenizer), length in zip((self.language, self.clip), self.lengths, strict=True)
            )
        )

    def encode(self, prompts: Sequence[str]) -> Encoded:
        if not prompts:
            raise ValueError("no prompts to encode: give at least one")
        text, mask = _states(*self.language, prompts, self.lengths[0])
        clip, _ = _states(*self.clip, prompts, self.lengths[1])
        return Encoded(text, mask, clip)


@torch.no_grad()
def _states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int
) -> tuple[Tensor, Tensor]:
    """Hidden states padded at the right to ``length``, so that a prompt's encoding does not depend on its batch."""
    batch = tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=length,
        padding_side="right",
        return_tensors="pt",
    ).to(model.device)
    body = model.base_model
    hidden = body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return hidden, batch["attention_mask"].bool()


def _places(length: int, width: int) -> Tensor:
    """Sinusoids of the places, [length, width]."""
    speeds = torch.exp(-math.log(100.0) * torch.arange(width // 2) / (width // 2))
    angles = torch.arange(length)[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos(), torch.zeros(length, width % 2)], 1)
