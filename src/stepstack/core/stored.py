"""Reading of checkpoints by torch.distributed.checkpoint, whose index and numbers are pickles, without running code:
only what such a checkpoint is made of may be named in them."""

from __future__ import annotations

import io
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as parts
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import ReadItem

from stepstack.config import ConfigError

INDEX = {  # what an index is made of: module -> names
    parts.__name__: {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    },
    filesystem.__name__: {"_StorageInfo"},
    "pathlib": {"PosixPath"},
    "torch": {"Size", "device", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
}


def load(state: dict[str, Any], folder: Path, no_dist: bool) -> None:
    """Fill ``state``, in place, from a folder of ``dcp.FileSystemWriter``. Every process calls it, unless ``no_dist``.

    ConfigError where something in the folder cannot be read, or could run code.
    """
    try:
        dcp.load(state, storage_reader=CheckpointReader(folder), planner=_Planner(), no_dist=no_dist)
    except CheckpointException as error:
        why = next(str(cause) for cause, _ in error.failures.values())
        raise ConfigError(f"{folder}: {why}: take another checkpoint") from error


class _Planner(dcp.DefaultLoadPlanner):
    """Loads numbers and strings by torch's restricted reader."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError:
            name = read_item.dest_index.fqn
            raise pickle.UnpicklingError(f"{name} is neither number nor text and could run code") from None
        value.seek(0)
        super().load_bytes(read_item, value)  # the same bytes, which name nothing that could run


class CheckpointReader(dcp.FileSystemReader):
    """Reads a folder of ``dcp.FileSystemWriter``. ConfigError where its index names what no checkpoint holds."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> parts.Metadata:
        file = self.folder / ".metadata"
        try:
            with file.open("rb") as content:
                index = _Index(content).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError) as error:
            raise ConfigError(f"{file} is no index of a checkpoint ({_first_line(error)}): take another") from None
        if index.storage_meta is None:
            index.storage_meta = parts.StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # by which Python 3.11.2 pickles the members of an enum
            return _member
        if name not in INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return super().find_class(module, name)


def _member(of: Any, name: str) -> Enum:
    """Member of an enum, all that an index may look up by a name."""
    if not (isinstance(of, type) and issubclass(of, Enum)):
        raise pickle.UnpicklingError(f"it looks up {name} of what is no enum, which could run code")
    return of[name]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
