"""A run's folder: which configuration it belongs to, and which process writes into it. No torch."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stepstack.config import ConfigError, RunConfig, difference, digest, to_dict, without
from stepstack.core.inputs import digests
from stepstack.report import jsonl
from stepstack.report.provenance import provenance

# A resumed run may change these: where it runs, how it is watched, and how far it goes. Not what a step computes.
CHANGEABLE_KEYS = (
    "name",
    "dir",
    "launch",
    "context",
    "context_plan",
    "save",
    "evals",
    "trackers",
    "tracking",
    "peak_tflops",
    "steps",
    "eval_every",
    "max_skipped",
    *(f"stream.{key}" for key in ("workers", "pin", "bind", "dispatch", "patience", "timeout", "weights", "rate")),
    "stream.restarts",
)
SAID_KEYS = ("steps", "eval_every", "save")  # their change is said aloud; Run.resume says what becomes of schedules
LOCK = ".lock"

_held: dict[Path, int] = {}  # handles of the locks of this process, open for as long as it lives


def _forget_locks() -> None:
    """A forked child must not keep the lock of a parent that was killed."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


def claim(folder: Path, config: RunConfig, inner: bool) -> list[str]:
    """Take a run's folder for this process, and record the configuration; returns what is to be said of keys that
    changed. ``inner``: a stage, whose folder lies inside of one that is taken.

    ConfigError where the folder belongs to another configuration, or another process writes into it; it is then left
    as it was.
    """
    file = folder / "config.json"
    now, files = to_dict(config), digests(config)
    if file.is_file():
        _refuse_another(file, now, files)
    folder.mkdir(parents=True, exist_ok=True)
    if not inner:
        lock(folder)
    if not file.is_file():
        facts = {"config": now, "hash": digest(config, CHANGEABLE_KEYS), "files": files, "provenance": provenance()}
        jsonl.write_json_atomic(file, facts | {"history": []})
        return []
    record = _refuse_another(file, now, files)  # again: another process may have written it until the lock was ours
    changed = difference(record["config"], now)
    if changed:
        entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "changed": changed}
        jsonl.write_json_atomic(file, record | {"config": now, "history": [*record.get("history", []), entry]})
    return [] if inner else [line for line in changed if line.split(":")[0].split(".")[0] in SAID_KEYS]


def _refuse_another(file: Path, now: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """The record of a folder. ConfigError where it is that of another run."""
    record = jsonl.read_json(file, "config", "files")
    recorded, current = (without(values, CHANGEABLE_KEYS) for values in (record["config"], now))
    known = {path: value for path, value in record["files"].items() if path in files}
    there = {path: value for path, value in files.items() if path in known}
    changed = difference(recorded, current) + [line.replace(": ", ": sha256 ", 1) for line in difference(known, there)]
    if changed:
        raise ConfigError(
            f"{file} belongs to another configuration; these keys differ:\n  "
            + "\n  ".join(changed)
            + "\nGive this run another name (name=...), or restore the keys to go on with that one."
        )
    return record


def lock(folder: Path) -> None:
    """Be the one process that writes into ``folder`` for as long as it lives; the system lets go when it ends, however
    it ends. The same process may take it again. ConfigError that names the process which has it."""
    file = folder / LOCK
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    if file in _held:
        if os.path.sameopenfile(handle, _held[file]):
            os.close(handle)
            return
        os.close(_held.pop(file))  # the folder was removed and made again
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 4096, 0).decode(errors="replace").strip()
        os.close(handle)
        raise ConfigError(
            f"{folder} is in use by {holder or 'another process'}: wait until that run has ended, stop it (kill PID), "
            "or give this one another name (name=...)"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[file] = handle


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder of a run, this one or another."""
    file = folder / LOCK
    if not file.is_file():
        return False
    with file.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
