"""Questions that are asked aloud: StepEval-Audio-360's chats and LLaMA Questions, from local files.

Both are JSON lines in our own form, since the published files come in several; recordings are named from the file's
folder, and may be left out: the words are then asked.

stepeval_audio_360/rows.jsonl  {"category": "Gaming", "turns": [{"role": "user", "text": "...", "audio": "1.wav"}, ...]}
llama_questions/rows.jsonl     {"question": "...", "answer": "...", "audio": "1.wav"}
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import DataError, refuse
from data.media.texts import numbered_lines, parse_json
from stepstack.generation.prompts import SpokenChat, SpokenTurn
from stepstack.records import Problem

STEPEVAL, LLAMA_QUESTIONS = "stepeval_audio_360", "llama_questions"  # names in the folder of benchmark data
CATEGORIES = (
    "Voice Instruction Following",
    "Voice Understanding",
    "Logical Reasoning",
    "Role-playing",
    "Creativity",
    "Singing",
    "Language Ability",
    "Speech Emotion Control",
    "Gaming",
)
ROLES = ("system", "user", "assistant")


def stepeval(folder: Path) -> list[Problem]:
    """Chats of StepEval-Audio-360, the last turn of each a user's. DataError with all bad rows."""
    return _problems(folder / STEPEVAL / "rows.jsonl", _chat)


def llama_questions(folder: Path) -> list[Problem]:
    """LLaMA Questions, whose gold is the answer. DataError with all bad rows."""
    return _problems(folder / LLAMA_QUESTIONS / "rows.jsonl", _question)


def chat_of(problem: Problem) -> SpokenChat:
    """Request of a row."""
    return SpokenChat(tuple(SpokenTurn(role, text, file and Path(file)) for role, text, file in problem.meta["source"]))


def _problems(file: Path, read: Any) -> list[Problem]:
    if not file.is_file():
        raise DataError(f"{file} does not exist: write the published rows in this form (data/sets/spoken_questions.py)")
    found: list[Problem] = []
    errors = []
    for number, row in numbered_lines(file):
        place = f"{file}:{number}"
        try:
            found.append(read(len(found), parse_json(place, row), file.parent))
        except DataError as error:
            errors.append(str(error) if str(error).startswith(place) else f"{place}: {error}")
    refuse(errors)
    if not found:
        raise DataError(f"{file} has no rows")
    return found


def _chat(index: int, row: Any, folder: Path) -> Problem:
    if not isinstance(row, dict) or row.get("category") not in CATEGORIES:
        raise DataError(f"category must be one of {', '.join(CATEGORIES)}")
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or turns[-1].get("role") != "user":
        raise DataError("turns must be a list whose last turn is the user's")
    read = [_turn(turn, folder) for turn in turns]
    text = "\n".join(f"{role}: {words}" for role, words, _ in read)
    return Problem(index, text, row["category"], {"category": row["category"], **_sounds(read)})


def _question(index: int, row: Any, folder: Path) -> Problem:
    if not isinstance(row, dict) or not str(row.get("answer", "")).strip():
        raise DataError("a row is an object with a question and an answer")
    turn = _turn({"role": "user", "text": row.get("question"), "audio": row.get("audio")}, folder)
    return Problem(index, turn[1], str(row["answer"]), _sounds([turn]))


def _turn(turn: Mapping[str, Any], folder: Path) -> tuple[str, str, str | None]:
    role, text, sound = turn.get("role"), turn.get("text"), turn.get("audio")
    if role not in ROLES or not isinstance(text, str) or not text.strip():
        raise DataError(f"a turn has a role ({', '.join(ROLES)}) and a text: {dict(turn)}")
    if sound is not None and not (folder / sound).is_file():
        raise DataError(f"{folder / sound} does not exist")
    return role, text.strip(), None if sound is None else str(folder / sound)


def _sounds(turns: list[tuple[str, str, str | None]]) -> dict[str, Any]:
    """Recordings by their content, which decides the plan of an evaluation; where they lie does not."""
    files = [file for _, _, file in turns if file is not None]
    return {"sha256": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files], "source": turns}
