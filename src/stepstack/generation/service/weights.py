"""Versions of a policy's weights as files: two are kept, each known by its sha256, sent whole or as a difference.

A difference is the XOR of two versions' files, which lie alike, in chunks whose bytes are put in planes (all first
bytes of the numbers, then all second ones) and compressed by zstd: numbers that did not change are zeros.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import zstandard
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepstack.generation.types import EngineError

CHUNK_BYTES = 1 << 22
KEPT_VERSIONS = 2
NUMBER_BYTES = 4
LEVEL = 1  # of zstd


class WeightFiles:
    """Files <version>.safetensors of a folder, each written aside and renamed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.digests: dict[int, str] = {}
        self._prepared: dict[int, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, version: int) -> Path:
        return self.folder / f"{version}.safetensors"

    def write(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Write a version, and drop all but the newest two. EngineError where there is no room for it."""
        self.keep(self.prepare(weights, version), version)

    def prepare(self, weights: Mapping[str, Tensor], version: int) -> Path:
        """The file of a version, whole but not counting yet; whoever serves the others meanwhile need not wait.
        EngineError where there is no room for it."""
        partial = self.folder / f".{version}.partial"
        try:
            save_file({name: value.contiguous() for name, value in weights.items()}, partial)
        except (OSError, SafetensorError) as error:
            raise EngineError(
                f"weights of version {version} could not be written to {self.folder} ({error}): make room there; the "
                "same command goes on from the newest checkpoint"
            ) from None
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        self._prepared[version] = file_digest(partial)
        return partial

    def keep(self, partial: Path, version: int) -> None:
        """Have a prepared file count, and drop all but the newest two versions."""
        partial.rename(self.path(version))
        self.digests[version] = self._prepared.pop(version)
        for old in sorted(self.digests)[:-KEPT_VERSIONS]:
            self.path(old).unlink(missing_ok=True)
            del self.digests[old]

    def receive(self, content: Path, version: int, sha256: str) -> None:
        """Take over a received file as a version. EngineError where it is not what ``sha256`` says."""
        if (found := file_digest(content)) != sha256:
            content.unlink()
            raise EngineError(f"weights of version {version} arrived as {found[:12]}, sent was {sha256[:12]}")
        self._prepared[version] = found
        self.keep(content, version)

    def load(self, version: int) -> dict[str, Tensor]:
        return load_file(self.path(version))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def file_digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def chunk_count(file: Path) -> int:
    return -(-file.stat().st_size // CHUNK_BYTES)


def read_chunk(file: Path, number: int) -> bytes:
    with file.open("rb") as handle:
        handle.seek(number * CHUNK_BYTES)
        return handle.read(CHUNK_BYTES)


def packed(content: bytes, base: bytes | None) -> bytes:
    """A chunk as it is sent: as a difference to the same chunk of ``base``, where both are of one size."""
    numbers = np.frombuffer(content, np.uint8)
    if base is not None:
        numbers = numbers ^ np.frombuffer(base, np.uint8)
    return zstandard.ZstdCompressor(level=LEVEL).compress(_planes(numbers).tobytes())


def unpacked(sent: bytes, base: bytes | None) -> bytes:
    """The chunk that ``packed`` was given. EngineError where it is torn."""
    try:
        planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(sent), np.uint8)
        numbers = _numbers(planes)
        return (numbers if base is None else numbers ^ np.frombuffer(base, np.uint8)).tobytes()
    except (zstandard.ZstdError, ValueError) as error:
        raise EngineError(f"a chunk of weights is torn ({error})") from None


def _planes(numbers: np.ndarray) -> np.ndarray:
    whole = len(numbers) - len(numbers) % NUMBER_BYTES
    return np.concatenate([numbers[:whole].reshape(-1, NUMBER_BYTES).T.ravel(), numbers[whole:]])


def _numbers(planes: np.ndarray) -> np.ndarray:
    whole = len(planes) - len(planes) % NUMBER_BYTES
    return np.concatenate([planes[:whole].reshape(NUMBER_BYTES, -1).T.ravel(), planes[whole:]])
