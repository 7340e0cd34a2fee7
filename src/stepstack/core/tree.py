"""Trees of Python values and tensors in two files without a pickle: <name>.json and <name>.safetensors.

A checkpoint may come from somebody else, and a pickle runs what it names when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from stepstack.config import ConfigError

TENSOR, TUPLE, MAP = "tensor", "tuple", "map"  # keys of the JSON objects that stand for what JSON has not


def write(tree: Any, folder: Path, name: str) -> None:
    """Write dicts, lists, tuples, numbers, strings, None and tensors. TypeError for anything else."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encoded(tree, tensors))
    (folder / f"{name}.safetensors").write_bytes(save(tensors))
    (folder / f"{name}.json").write_text(text)


def read(folder: Path, name: str) -> Any:
    """The tree that ``write`` wrote, tensors on the CPU. ConfigError where the files are missing."""
    file = folder / f"{name}.json"
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: the checkpoint was written by an older stepstack: train anew")
    return _decoded(json.loads(file.read_text()), load((folder / f"{name}.safetensors").read_bytes()))


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value.detach().cpu().contiguous().clone()
        return {TENSOR: str(len(tensors) - 1)}
    if isinstance(value, Mapping):  # keys may be numbers, as in the state of an optimizer
        return {MAP: [[_encoded(key, tensors), _encoded(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {TUPLE: [_encoded(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encoded(item, tensors) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a checkpoint")


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, held)] = value.items()
    if kind == TENSOR:
        return tensors[held]
    if kind == TUPLE:
        return tuple(_decoded(item, tensors) for item in held)
    return {_decoded(key, tensors): _decoded(item, tensors) for key, item in held}
