"""Prompts: text to token ids, and the stream of training prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from stepstack.rl.types import Picture, Prompt


class Message(NamedTuple):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Pictured:
    """Pictures and what is asked of them; the recipe of the model knows how to put it."""

    pictures: tuple[Picture, ...]
    text: str


# Plain text that the model continues, a chat that the model's own template renders, or a question about pictures.
Request = str | Sequence[Message] | Pictured


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


class Prompts:
    """The stream of training prompts: a pure function of (seed, step), so that a resumed run needs no cursor.

    Endless epochs over ``prompts``, each a permutation of its own cut into whole steps. What does not fill a step is
    left out of that epoch, so that no problem comes twice in a step (its two groups would be one)."""

    def __init__(self, prompts: Sequence[Prompt], seed: int):
        if not prompts:
            raise ValueError("no training prompts: the prepared set is empty or every prompt was dropped")
        self.prompts, self.seed = prompts, seed
        self._epoch, self._order = -1, list[int]()

    def take(self, step: int, count: int) -> list[Prompt]:
        """The ``count`` different prompts of a step."""
        if count > len(self.prompts):
            raise ValueError(f"rollout.prompts is {count}, but there are only {len(self.prompts)} training prompts")
        epoch, place = divmod(step, len(self.prompts) // count)
        if epoch != self._epoch:
            import torch  # here, because the menu of tasks needs this file and no torch

            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.prompts), generator=generator).tolist()
        return [self.prompts[i] for i in self._order[place * count : (place + 1) * count]]
