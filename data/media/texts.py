"""The only reader of text files of data: UTF-8 with or without a byte order mark, JSON and JSON lines.

What cannot be read is named by its place: byte, row, or line and column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import DataError

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a pair, of which JSON may hold one alone
BETWEEN = re.compile(r"[\s,]*")  # what stands between the rows of a list
TABLES = (".parquet", ".csv", ".tsv")  # which are read with their folder, by datasets
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip"}


def read_text(file: Path) -> str:
    """Text of a file, whose lines end in a newline alone. DataError for a file that is missing or no UTF-8."""
    if not file.is_file():
        raise DataError(f"{file} does not exist: correct the path, or put it there")
    return utf8(file, file.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1, those without text left out."""
    return _lines(read_text(file))


def utf8(file: Path, content: bytes) -> str:
    """Text of bytes; ``file`` is for errors."""
    if content.startswith(b"version https://git-lfs"):
        raise DataError(f"{file}: a Git LFS pointer, not the data: run `git lfs pull` in its repository")
    for head, packer in PACKED.items():
        if content.startswith(head):
            raise DataError(f"{file} is packed by {packer}: unpack it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}; convert it") from None


def json_value(file: Path, content: bytes) -> Any:
    """Value of a whole JSON file. DataError names what cannot be read."""
    return parse_json(str(file), utf8(file, content))


def json_rows(file: Path, content: bytes) -> list[tuple[str, Any]]:
    """Pairs (place, JSON value) of the rows of a file: of its lines (.jsonl), else of the list that it is. DataError
    names the row that cannot be read."""
    if file.suffix.lower() in TABLES:
        raise DataError(f"{file} is a table, not JSON: give its folder, hf:{file.parent}")
    text = utf8(file, content)
    if file.suffix == ".jsonl":
        places = ((f"{file} line {number}", line) for number, line in _lines(text))
        return [(place, parse_json(place, line)) for place, line in places]
    try:
        rows = _parsed(str(file), text)
    except _Unreadable as error:
        raise DataError(f"{file} row {_first_unreadable(text)}: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: must be a list of rows, not {type(rows).__name__}")
    placed = [(f"{file} row {number}", row) for number, row in enumerate(rows, 1)]
    if SURROGATE.search(text):
        for place, row in placed:
            _check_surrogates(place, row)
    return placed


def parse_json(place: str, text: str) -> Any:
    """Value of a JSON text. DataError names the place and what is wrong: no JSON, nesting or numbers beyond what Python
    reads, or half of a surrogate pair, which cannot be written as UTF-8."""
    try:
        value = _parsed(place, text)
    except _Unreadable as error:
        raise DataError(f"{place}: {error}") from None
    if SURROGATE.search(text):
        _check_surrogates(place, value)
    return value


class _Unreadable(Exception):
    """Reason why a text that is JSON is not read; Python does not say where."""


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}" if "\n" in text else ""
        raise DataError(
            f"{place}{line} column {error.colno}: not JSON: {error.msg}; download it again or repair that line"
        ) from None
    except RecursionError:
        raise _Unreadable("nested too deeply to be read: remove the row, or flatten it") from None
    except ValueError:  # a whole number of more than 4300 digits
        raise _Unreadable("holds a whole number with too many digits: write it as text") from None


def _first_unreadable(text: str) -> int:
    """Number of the first row of a list that Python does not read."""
    number, place = 1, text.find("[") + 1
    while True:
        between = BETWEEN.match(text, place)
        assert between is not None
        try:
            _, place = json.JSONDecoder().raw_decode(text, between.end())
        except (ValueError, RecursionError):
            return number
        number += 1


def _check_surrogates(place: str, value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(
            f"{place}: holds {half!a} alone, half of a character: repair the text that was cut there"
        ) from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines with text, split at newlines only: a text may hold other separators, such as U+2028."""
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
