"""Files of records that survive a kill: one JSON object a line, and whole files that are either old or new."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ABANDONED_SECONDS = 3600  # a write takes seconds: a temporary file that is older is of a process that was killed


class JsonError(ValueError):
    """File that is no JSON object with the keys it should have, or a line of one that is none where only the last one
    may be torn. The message names file and line and says what to do."""


class JsonRows(list[dict[str, Any]]):
    """Complete rows. ``torn`` counts the last lines (0 or 1) that a kill had left unfinished and that are not here."""

    def __init__(self, rows: Iterable[dict[str, Any]], torn: int):
        super().__init__(rows)
        self.torn = torn


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The object that ``write_json_atomic`` wrote. JsonError where it was cut off or changed, so that it is no JSON
    object or lacks one of ``keys``."""
    advice = "restore the file, or remove what it belongs to and give the command again"
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise JsonError(f"{path} is not JSON ({error}): {advice}") from None
    if not isinstance(value, dict):
        raise JsonError(f"{path} must hold an object, not {type(value).__name__}: {advice}")
    if missing := [key for key in keys if key not in value]:
        raise JsonError(f"{path} has no {', '.join(map(repr, missing))}: {advice}")
    return value


def append(path: Path, *rows: Mapping[str, Any], sync: bool = False) -> None:
    """Add lines with one write, so that a kill tears at most one line. A torn last line is cut off first.

    ``sync`` waits until they are on disk, where a loss of power cannot take them. TypeError where a value is no JSON;
    the file is then unchanged. NaN and infinities are written by their JavaScript names.
    """
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as handle:
        _cut_torn_line(handle.fileno())
        handle.write(lines)
        if sync:
            os.fsync(handle.fileno())


def read(path: Path) -> JsonRows:
    """Rows of a file. A last line without its newline is dropped and counted; any other bad line raises JsonError."""
    *lines, last = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise JsonError(f"{path}:{number}: not JSON ({error}): {line[:80]!r}. Remove or repair the line") from None
        if not isinstance(row, dict):
            raise JsonError(f"{path}:{number}: must be an object, not {type(row).__name__}. Remove or repair the line")
        rows.append(row)
    return JsonRows(rows, torn=1 if last else 0)


def read_whole(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that was written at once, by ``write_rows_atomic``: JsonError also for a torn last line."""
    rows = read(path)
    if rows.torn:
        raise JsonError(f"{path}:{len(rows) + 1}: the file ends in the middle of a line: restore it, or make it anew")
    return rows


def write_rows_atomic(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole file of rows at once."""
    write_text_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON. Readers see the old file or the new one, also after a loss of power."""
    write_text_atomic(path, json.dumps(value, indent=2) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text like ``write_json_atomic``."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write bytes like ``write_json_atomic``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would hide a shared run from its other readers
        Path(name).replace(path)
    except BaseException:  # Ctrl-C too must not leave a half file behind
        Path(name).unlink()
        raise


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files that killed writes of ``path`` left beside it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with contextlib.suppress(FileNotFoundError):  # another process may remove it, or be writing it
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink()


def _cut_torn_line(handle: int) -> None:
    size = os.fstat(handle).st_size
    end, block = size, 4096
    while end > 0:
        start = max(0, end - block)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(handle, end)
