"""Prompts: text to token ids, and the stream of training prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from stepstack.records import Picture


class Message(NamedTuple):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Pictured:
    """Pictures and what is asked of them; the recipe of the model knows how to put it."""

    pictures: tuple[Picture, ...]
    text: str


@dataclass(frozen=True, slots=True)
class ClipPrompt:
    """A first frame, what is to happen in a clip, and how much is to move: the motion score, 0 for a still clip. The
    noise's seed derives from ``key``. A ``lossless`` clip is kept pixel by pixel."""

    pictures: tuple[Picture]
    text: str
    motion: float
    key: str
    lossless: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording of speech and its words."""

    text: str
    file: Path


@dataclass(frozen=True, slots=True)
class SpeechPrompt:
    """A text to be spoken. ``tag`` says how, such as "(fast1)"; ``speaker`` names a voice that the model learned, ""
    for that of the ``reference`` alone."""

    text: str
    speaker: str = ""
    tag: str = ""
    reference: Recording | None = None


@dataclass(frozen=True, slots=True)
class Resynthesis:
    """A recording that the codec is to encode and play again; given its codes (linguistic, semantic), play alone."""

    text: str
    sound: Path | tuple[tuple[int, ...], tuple[int, ...]]


class SpokenTurn(NamedTuple):
    """One turn of a spoken chat: its words, and the recording of them where there is one."""

    role: Literal["system", "user", "assistant"]
    text: str
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class SpokenChat:
    """A chat whose turns may be recordings, which a model that hears is sent in place of their words."""

    turns: tuple[SpokenTurn, ...]


NotText = Pictured | ClipPrompt | SpeechPrompt | Resynthesis | SpokenChat

# Plain text that the model continues, a chat that the model's own template renders, a question about pictures, a clip
# to be made, or speech.
Request = str | Sequence[Message] | NotText


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that a prompt needs."""

    bos_token_id: int | None

    def __call__(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> dict[str, list[int]]: ...

    def apply_chat_template(
        self, conversation: list[dict], *, add_generation_prompt: bool, tokenize: bool, return_dict: bool
    ) -> Any: ...


def encode(request: str | Sequence[Message], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Token ids of a prompt, in training and in evaluation alike.

    Plain text: exactly one BOS where the tokenizer has one, whether or not it adds one itself, and the names of special
    tokens are read as text. A chat: what the template makes of it, open for the assistant's turn.
    """
    if isinstance(request, str):
        ids = tokenizer(request, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return (*(() if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)), *ids)
    turns = [message._asdict() for message in request]
    return tuple(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))
