"""How rows become micro-batches. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from stepstack.config import Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLayout(Strict):
    """How rows become micro-batches."""

    pack: bool = False
    """Whether rows are packed one behind the other into one sequence, instead of padded to the longest."""
    max_tokens: PositiveInt = 8192
    """Most tokens of a micro-batch, padding counted."""
    share_prompts: bool = False
    """Whether a prompt goes through the model once for all its answers in a mini-batch, rollouts or a preference pair,
    which spares most of the work where prompts are long beside answers; needs the attention sdpa."""
    orz_parity: bool = False
    """Whether packs are filled in arrival order and trailing packs dropped, as ORZ's code does; needs ``pack``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatConfig(Strict):
    """How chats become tokens."""

    turns: Literal["all", "last"] = "all"
    """Assistant turns of a conversation that are learned: all, or the last one; each with the token that ends it."""
    max_tokens: PositiveInt = 2048
    """Most tokens of a conversation, pictures counted."""
    long: Literal["drop", "cut"] = "drop"
    """Fate of a longer conversation: drop leaves it out, and counts it; cut cuts its answer at the end, never what
    stands before."""
    template: str | None = None
    """File of a chat template (Jinja) that takes the place of the model's own; null: the model's own."""
    end: str | None = None
    """Token that ends a turn in the chat template where the model does not stop at it, such as <|im_end|> of Qwen2.5's
    base models; the saved model then stops at it. Null: the model stops at it already."""
