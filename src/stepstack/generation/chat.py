"""Chats as token ids, and which of them an assistant's turn is: found by rendering the beginnings of a conversation.

A chat template says nowhere which characters are the assistant's. Rendered up to a turn with the generation prompt, and
up to and with the turn, it shows where that begins and ends, for every template and without ``{% generation %}`` tags.
A turn learns from its first character to the first token that ends it. Where the template renders a turn otherwise once
others follow (Qwen3 drops earlier thoughts), each turn becomes a text of its own, with the history as a model reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jinja2
from transformers import GenerationConfig, PreTrainedTokenizerBase

from data.errors import BadRow
from stepstack.generation.prompts import encode
from stepstack.models.vision.processor import Processor
from stepstack.records import Picture

Turns = Literal["all", "last"]
READ_AS_WRITTEN = ("system", "developer", "user")  # roles whose text must stand in what the template makes of them


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages with ``role`` and ``content``. Assistant turns from number ``first`` on may learn; ``options`` go to the
    template (tools); ``pictures`` are those of the placeholders, in order."""

    where: str
    messages: tuple[Mapping[str, Any], ...]
    first: int = 0
    pictures: tuple[Picture, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Continuation:
    """Plain text and how it goes on, for a model without a chat template."""

    where: str
    prompt: str
    completion: str


Example = Conversation | Continuation


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt."""

    where: str
    chosen: Example
    rejected: Example


@dataclass(frozen=True, slots=True)
class Learnt:
    """Tokens of one text and, for each, whether it learns. ``taken_back``: the end of the generation prompt that the
    template does not write before the turn itself, an empty string where it writes the same."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    pictures: tuple[Picture, ...] = ()
    taken_back: str = ""

    @property
    def begin(self) -> int:
        """Place of the first token that learns."""
        return self.mask.index(True)


@dataclass(frozen=True, slots=True)
class _Rendered:
    text: str
    spans: tuple[tuple[int, int], ...]
    taken_back: str = ""


class ChatEncoder:
    """Conversations as tokens of one model. ``ends``: ids of the tokens that the model stops at; ``processor``: of a
    model that takes pictures."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        *,
        turns: Turns = "all",
        processor: Processor | None = None,
    ):
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} does not know its offsets: use a fast tokenizer")
        self.tokenizer, self.ends, self.turns, self.processor = tokenizer, tuple(ends), turns, processor
        self.end_texts = [str(tokenizer.convert_ids_to_tokens(end)) for end in ends]
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.special = sorted(special, key=len, reverse=True)

    def encode(self, example: Example) -> list[Learnt]:
        """The texts of an example, mostly one. BadRow where nothing of it can be learned, or its template misleads;
        ValueError for a model without an end token."""
        if not self.ends:
            raise ValueError("the model has no end token (generation_config.json: eos_token_id): set chat.end")
        if isinstance(example, Continuation):
            return [self._continuation(example)]
        self._check(example)
        return [self._tokens(rendered, example) for rendered in self._render(example)]

    def open(self, example: Example) -> tuple[tuple[int, ...], tuple[Picture, ...]]:
        """Tokens and pictures of a prompt: a conversation open for the assistant's turn, or a text to go on with."""
        if isinstance(example, Continuation):
            return encode(example.prompt, self.tokenizer), ()
        text = self._tokens(_Rendered(self._text(example, len(example.messages), open=True), ()), example)
        return text.ids, text.pictures

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def _continuation(self, example: Continuation) -> Learnt:
        """Prompt and completion as one text, behind the BOS, and the first end token. Names of special tokens in them
        are plain text, as in ``prompts.encode``."""
        if not example.completion:
            raise BadRow("the completion is empty: remove the row")
        bos = () if self.tokenizer.bos_token_id is None else (self.tokenizer.bos_token_id,)
        text = example.prompt + example.completion
        ids, mask = self._masked(text, ((len(example.prompt), len(text)),), split_special_tokens=True)
        return Learnt((*bos, *ids, self.ends[0]), (*(False for _ in bos), *mask, True))

    def _check(self, example: Conversation) -> None:
        for number, message in enumerate(example.messages, 1):
            text = written_text(message)
            if name := next((name for name in self.special if name in text), None):
                raise BadRow(
                    f"message {number} holds {name!r}, a special token, which the chat template alone may write: "
                    "remove it from the text"
                )

    def _render(self, example: Conversation) -> list[_Rendered]:
        messages = example.messages
        answers = [
            i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= max(example.first, 1)
        ]
        if not answers:
            raise BadRow("no assistant turn that answers something, so no token would learn: add one or remove the row")
        whole = self._text(example, answers[-1] + 1)
        for number, message in enumerate(messages[: answers[-1]], 1):
            if message["role"] in READ_AS_WRITTEN and not all(part.strip() in whole for part in text_parts(message)):
                raise BadRow(
                    f"the chat template leaves out message {number}, of role {message['role']}: take another role, or "
                    "another template"
                )
        alone = [self._turn(example, i) for i in (answers if self.turns == "all" else answers[-1:])]
        last = alone[-1]
        if all(whole.startswith(turn.text) for turn in alone):
            spans = tuple(span for turn in alone for span in turn.spans)
            return [_Rendered(last.text, spans, last.taken_back)]
        return alone

    def _turn(self, example: Conversation, number: int) -> _Rendered:
        """The text up to the end token of one turn, which alone learns."""
        message = example.messages[number]
        if not written_text(message).strip() and not message.get("tool_calls"):
            raise BadRow(f"message {number + 1}, an assistant turn, is empty: remove the row")
        before, prompt = self._text(example, number), self._text(example, number, open=True)
        turn = self._text(example, number + 1)
        start = common(prompt, turn)
        header = turn[start : max(turn.find(written_text(message).strip(), start), start)]
        if start < common(before, prompt):
            raise BadRow(
                f"the chat template writes the messages before number {number + 1} otherwise once it follows: take "
                "another template (chat.template)"
            )
        if before == prompt and any(name in header for name in self.special):
            raise BadRow(
                f"the chat template writes {header!r} itself, but has no generation prompt (add_generation_prompt), so "
                "the model would be asked without it: take another template (chat.template)"
            )
        ends = [turn.index(end, start) + len(end) for end in self.end_texts if end in turn[start:]]
        if not ends:
            raise BadRow(
                f"the chat template ends a turn with {turn[-20:]!r}, where the model stops only at "
                f"{', '.join(self.end_texts)}, so it would never learn to stop: set chat.end to the template's end "
                "token, which is then written into the model's generation_config.json"
            )
        return _Rendered(turn[: min(ends)], ((start, min(ends)),), prompt[start:])

    def _text(self, example: Conversation, count: int, open: bool = False) -> str:
        options = {"add_generation_prompt": open, "tokenize": False, **example.options}
        try:
            return str(self.tokenizer.apply_chat_template([dict(m) for m in example.messages[:count]], **options))
        except jinja2.TemplateError as error:
            raise BadRow(
                f"the chat template refuses the first {count} messages: {error}. Mend them, or take another template "
                "(chat.template)"
            ) from None

    def _tokens(self, rendered: _Rendered, example: Conversation) -> Learnt:
        ids, mask = self._masked(rendered.text, rendered.spans)
        if self.processor is None:
            if example.pictures:
                raise BadRow(f"{len(example.pictures)} pictures, but the model reads none: take one that does")
            return Learnt(ids, mask, (), rendered.taken_back)
        token, placeholders = self.processor.image_token, ids.count(self.processor.image_token)
        if placeholders > len(example.pictures):
            raise BadRow(f"{placeholders} placeholders, but {len(example.pictures)} pictures: make them as many")
        pictures = example.pictures[:placeholders]
        sizes = iter([self.processor.patcher.tokens(picture.image().size) for picture in pictures])
        wide: list[tuple[int, bool]] = []
        for one, learns in zip(ids, mask, strict=True):
            wide += [(one, False)] * next(sizes) if one == token else [(one, learns)]
        return Learnt(tuple(i for i, _ in wide), tuple(m for _, m in wide), pictures, rendered.taken_back)

    def _masked(
        self, text: str, spans: Sequence[tuple[int, int]], **options: bool
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Tokens of the whole text; those that hold a character of a span learn."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **options)
        mask = [any(begin < end and stop > start for start, end in spans) for begin, stop in encoded["offset_mapping"]]
        return tuple(encoded["input_ids"]), tuple(mask)


def text_parts(message: Mapping[str, Any]) -> Iterator[str]:
    """Texts of a message: its content, or the text parts of it."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content or () if part.get("type") == "text")


def written_text(message: Mapping[str, Any]) -> str:
    """All text of a message in one."""
    return "\n".join(text_parts(message))


def common(one: str, other: str) -> int:
    """Number of characters that two texts begin with alike."""
    if other.startswith(one):
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


def end_tokens(generation: GenerationConfig) -> list[int]:
    """Ids of the tokens that generation stops at."""
    ends = generation.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or ())
