"""Chat data as people have it: rows of ``messages``, ``prompt`` and ``completion``, or ``prompt``, ``chosen`` and
``rejected``, read from JSON lines or ``hf:`` names.

The forms are TRL's, read by its own documented utilities: turns with ``from`` and ``value`` (ShareGPT), a prompt that
stands only in both answers, and ``images`` with placeholders. A row may have ``tools`` and ``chat_template_kwargs``,
which go to the chat template. Where prompt and answer are both texts, not messages, they are plain text without a
template.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data.errors import BadRow, DataError, refuse
from data.media.images import BytesPicture, FilePicture, image_source
from data.prepare.manifest import on_hub, read_source
from stepstack.config import ConfigError
from stepstack.generation.chat import Continuation, Conversation, Example, Preference, text_parts
from stepstack.records import Picture

ROLES = ("system", "developer", "user", "assistant", "tool")
SHARE_GPT = {"human": "user", "gpt": "assistant"}
IMAGE = "<image>"  # a placeholder in plain text, as LLaVA's rows have it
SFT_FORM = '{"messages": [...]} or {"prompt": ..., "completion": ...}'
PAIR_FORM = '{"prompt": ..., "chosen": ..., "rejected": ...}'
MESSAGE_FORM = '{"role": "user", "content": ...}'
LISTS = ("messages", "prompt", "completion", "chosen", "rejected")

T = TypeVar("T")


def read_examples(source: str | Sequence[str]) -> list[Example]:
    """Conversations and continuations to learn from. DataError names up to 20 bad rows by file and line."""
    return _read(source, _example)


def read_preferences(source: str | Sequence[str]) -> list[Preference]:
    """Pairs of answers. DataError names up to 20 bad rows by file and line."""
    return _read(source, _preference)


def _read(source: str | Sequence[str], parse: Callable[[str, dict[str, Any], Path], T]) -> list[T]:
    parsed, errors = [], []
    for place in [source] if isinstance(source, str) else source:
        folder = Path() if on_hub(place) else Path(place) if Path(place).is_dir() else Path(place).parent
        for where, row in read_source(place).rows:
            try:
                parsed.append(parse(where, _converted(row), folder))
            except BadRow as error:
                errors.append(f"{where}: {error}")
    refuse(errors)
    return parsed


def _utilities() -> Any:
    """TRL's utilities for data. It is an extra, and takes seconds to import."""
    try:
        from trl import data_utils
    except ImportError:
        raise ConfigError("chat data is read by TRL's utilities: make setup EXTRAS=chat") from None
    return data_utils


def _converted(row: Any) -> dict[str, Any]:
    """A row in the roles and keys of ChatML, without keys that are null."""
    if not isinstance(row, Mapping):
        raise BadRow(f"must be a map, not {type(row).__name__}: expected {SFT_FORM}, or {PAIR_FORM}")
    present = {key: value for key, value in row.items() if value is not None}
    converted = _utilities().maybe_convert_to_chatml(copy.deepcopy(present))
    for key in LISTS:
        if isinstance(converted.get(key), list):
            converted[key] = [_message(key, number, turn) for number, turn in enumerate(converted[key], 1)]
        elif isinstance(converted.get(key), Mapping):
            raise BadRow(f"key {key} must be a list of messages or a text, not a map: put it in [ ]")
    return converted


def _message(key: str, number: int, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or "role" not in turn:
        raise BadRow(f"{key}[{number}] must be a message: expected {MESSAGE_FORM}")
    message = {name: value for name, value in turn.items() if value is not None}
    role = message["role"] = SHARE_GPT.get(turn["role"], turn["role"])
    if role not in ROLES:
        raise BadRow(f"{key}[{number}].role is {role!r}: expected one of {', '.join(ROLES)}, or ShareGPT's human, gpt")
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = [_part(f"{key}[{number}]", part) for part in content]
    elif not isinstance(content, str) and "tool_calls" not in message:
        raise BadRow(f"{key}[{number}].content must be a text or a list of parts: expected {MESSAGE_FORM}")
    return message


def _part(place: str, part: Any) -> dict[str, Any]:
    """A part of a message, without the null keys that a table gives to all of them."""
    fields = {name: value for name, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    if fields.get("type") == "image" or (fields.get("type") == "text" and isinstance(fields.get("text"), str)):
        return fields
    raise BadRow(f'{place} has a part that is neither {{"type": "text", "text": ...}} nor {{"type": "image"}}')


def _example(where: str, row: dict[str, Any], folder: Path) -> Example:
    if "messages" in row:
        return _conversation(where, row, row["messages"], 0, folder)
    if "chosen" in row and "rejected" in row:
        raise BadRow(f"a pair of answers, which stage dpo reads; stage sft expects {SFT_FORM}")
    return _answered(where, row, "completion", folder, SFT_FORM)


def _preference(where: str, row: dict[str, Any], folder: Path) -> Preference:
    if "chosen" not in row or "rejected" not in row:
        raise BadRow(f"has the keys {', '.join(row)}: stage dpo expects {PAIR_FORM}")
    if row["chosen"] == row["rejected"]:
        raise BadRow("chosen and rejected are equal, so nothing can be learned from the pair: remove it")
    if not row["chosen"] or not row["rejected"]:
        raise BadRow(f"{'rejected' if row['chosen'] else 'chosen'} is empty: remove the pair")
    if isinstance(row["chosen"], str) != isinstance(row["rejected"], str):
        raise BadRow("one of chosen and rejected is a text, the other a list of messages: write both the same way")
    parts = {key: row[key] for key in ("prompt", "chosen", "rejected") if key in row}
    if isinstance(row.get("prompt"), str) and _answers(row["chosen"]):
        parts["prompt"] = _spoken("user", row["prompt"])
    if isinstance(row.get("prompt"), list) and isinstance(row["chosen"], str):
        parts |= {key: _spoken("assistant", row[key]) for key in ("chosen", "rejected")}
    explicit = row | _utilities().maybe_extract_prompt(parts)
    chosen, rejected = (_answered(where, explicit, key, folder, PAIR_FORM) for key in ("chosen", "rejected"))
    return Preference(where, chosen, rejected)


def _answered(where: str, row: dict[str, Any], key: str, folder: Path, form: str) -> Example:
    """A prompt and its answer under ``key``. Two texts are plain text; a text beside messages is a turn."""
    for name in ("prompt", key):
        if name not in row:
            raise BadRow(f"has the keys {', '.join(row)}: expected {form}")
    prompt, answer = row["prompt"], row[key]
    if isinstance(prompt, str) and isinstance(answer, str):
        if not answer:
            raise BadRow(f"{key} is empty: remove the row")
        if row.get("images"):
            raise BadRow("images need messages to stand in: write the prompt as a list of messages")
        return Continuation(where, prompt, answer)
    prompt = _spoken("user", prompt) if isinstance(prompt, str) else prompt
    answer = _spoken("assistant", answer) if isinstance(answer, str) else answer
    if not any(turn["role"] == "assistant" for turn in answer):
        raise BadRow(f"{key} has no assistant turn: add one or remove the row")
    return _conversation(where, row, [*prompt, *answer], len(prompt), folder)


def _answers(messages: Any) -> bool:
    """Whether messages begin with an answer, so that the question stands elsewhere."""
    return isinstance(messages, list) and messages[0]["role"] == "assistant"


def _spoken(role: str, text: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


def _conversation(where: str, row: dict[str, Any], messages: Any, first: int, folder: Path) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"messages must be a list that is not empty: expected {MESSAGE_FORM} in it")
    options = dict(row.get("chat_template_kwargs") or {})
    if tools := row.get("tools"):
        options["tools"] = _tools(tools)
    images = row.get("images", [row["image"]] if "image" in row else [])
    pictures = [_picture(image, number, folder, where) for number, image in enumerate(images, 1)]
    if pictures or any(_has_image(turn) for turn in messages):
        messages = _placed(messages, pictures)
    return Conversation(where, tuple(messages), first, tuple(pictures), options)


def _tools(tools: Any) -> Any:
    """Schemas of functions, which tables often hold as JSON text."""
    try:
        return json.loads(tools) if isinstance(tools, str) else tools
    except json.JSONDecodeError as error:
        raise BadRow(f"key tools is not JSON: {error.msg}: repair it, or write a list") from None


def _placed(messages: list[dict[str, Any]], pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Messages with each picture in its placeholder; without any they stand before the first question.

    Where one message has parts or ``<image>`` in its text, all are written in parts first: TRL's utility adds
    placeholders of its own before the first question that is a plain text.
    """
    if any(_has_image(turn) or any(IMAGE in text for text in text_parts(turn)) for turn in messages):
        messages = [_in_parts(turn) for turn in messages]
    try:
        return _utilities().prepare_multimodal_messages(messages, images=list(pictures))
    except ValueError:
        placeholders = sum(part["type"] == "image" for turn in messages for part in _in_parts(turn).get("content", ()))
        raise BadRow(f"{placeholders} placeholders, but {len(pictures)} pictures: make them as many") from None


def _has_image(turn: Mapping[str, Any]) -> bool:
    content = turn.get("content")
    return isinstance(content, list) and any(part["type"] == "image" for part in content)


def _in_parts(turn: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is a list of parts, ``<image>`` in its text being a placeholder."""
    if "content" not in turn:
        return turn
    content = turn["content"]
    parts: list[dict[str, Any]] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] != "text":
            parts.append(part)
            continue
        for number, text in enumerate(part["text"].split(IMAGE)):
            parts += [{"type": "image"}] * (number > 0) + [{"type": "text", "text": text}] * bool(text)
    return turn | {"content": parts}


def _picture(image: Any, number: int, folder: Path, where: str) -> Picture:
    """A picture that could be opened: a file, from the folder of the rows, or its bytes. BadRow where it could not."""
    source = image_source(image, f"images[{number}]")
    name = f"image {number} of {where}"
    picture: Picture = BytesPicture(source, name) if isinstance(source, bytes) else FilePicture(str(folder / source))
    try:
        picture.image()
    except DataError as error:
        raise BadRow(f"images[{number}]: {error}") from None
    return picture
