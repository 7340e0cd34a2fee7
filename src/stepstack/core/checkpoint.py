"""Atomic checkpoints: written aside, described, renamed. What bears a whole description is whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from stepstack.config import ConfigError

MANIFEST = "complete.json"
TORCH_STREAM = r"inline_container|iostream"  # of errors in torch.save, which does not pass on that of the disk
MAX_HASHED_BYTES = 64 * 2**20  # files up to this size are hashed; larger ones are checked by size


def finish(partial: Path, final: Path, extra: dict[str, Any]) -> None:
    """Describe the files of ``partial`` and rename it to ``final``: from now on it counts."""
    files = {}
    (partial / MANIFEST).unlink(missing_ok=True)  # one that a killed save left would describe itself, and not hold
    for file in sorted(p for p in partial.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        files[str(file.relative_to(partial))] = _describe(file)
    text = json.dumps({"files": files, **extra}, indent=1)
    with (partial / MANIFEST).open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    if final.exists():  # a torn or rewound one of the same step
        shutil.rmtree(final)
    partial.rename(final)
    _sync_folder(final.parent)


class PendingCheckpoint:
    """A checkpoint that is written while training goes on. It counts once ``finish`` has run, by the one process that
    has it, after all ``writes``."""

    def __init__(self, writes: Sequence[Future[Any]], finish: Callable[[], None] | None):
        self._writes, self._finish = writes, finish
        executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._done = executor.submit(self._complete)
        executor.shutdown(wait=False)

    def _complete(self) -> None:
        for write in self._writes:
            write.result()
        if self._finish is not None:
            self._finish()

    def wait(self) -> None:
        """Return when this process's part is done; raises what went wrong in it."""
        self._done.result()


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an error of the disk, on whichever process, into one ConfigError on all that took part."""
    try:
        yield
    except CheckpointException as error:
        [(rank, (cause, _)), *_] = error.failures.items()
        if not isinstance(cause, OSError) and not re.search(TORCH_STREAM, str(cause)):
            raise
        raise ConfigError(_unwritten(place, f"process {rank}: {cause}")) from None
    except OSError as error:
        raise ConfigError(_unwritten(place, str(error))) from None


def _unwritten(place: Path, why: str) -> str:
    return f"{place} could not be written ({why}): make room there; the same command goes on from the checkpoint before"


def problem(folder: Path) -> str | None:
    """Why a checkpoint is not whole, or None."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing"
    try:
        files = [(str(name), dict(described)) for name, described in json.loads(manifest.read_bytes())["files"].items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # any of its bytes may have changed
        return f"{MANIFEST} cannot be read ({error})"
    for name, described in files:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != described.get("bytes"):
            return f"{name} has {file.stat().st_size} of {described.get('bytes')} bytes"
        if _describe(file) != described:
            return f"{name} does not match its sha256"
    return None


def newest_first(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, path) of every finished checkpoint, whole or not."""
    places = [(int(m[1]), p) for p in folder.glob("step-*") if (m := re.fullmatch(r"step-(\d+)", p.name))]
    yield from sorted(places, reverse=True)


def prune(folder: Path, keep: int, step: int) -> None:
    """Delete all but the newest ``keep`` up to ``step``, whatever a killed save left, and what is later than ``step``:
    torn ones that the run has gone back from, which must not count among the kept."""
    for partial in folder.glob(".partial-*"):
        shutil.rmtree(partial)
    checkpoints = list(newest_first(folder))
    later = [path for at, path in checkpoints if at > step]
    for path in later + [path for at, path in checkpoints if at <= step][max(keep, 1) :]:
        shutil.rmtree(path)


def _describe(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    known: dict[str, Any] = {"bytes": size}
    if size <= MAX_HASHED_BYTES:
        known["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return known


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
