"""A user's own Python file: a reward, a task, a generator engine. No torch."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from stepstack.config import ROOT, ConfigError


def resolve_path(path: str) -> Path:
    """An absolute path, or one from where the command is typed, or else from the repository.

    ConfigError where no such file exists.
    """
    for candidate in (Path(path), ROOT / path):
        if candidate.is_file():
            return candidate.resolve()
    raise ConfigError(f"{path} does not exist: give the path of a .py file, from here or from the repository")


def load_module(path: str | Path) -> ModuleType:
    """The file as a module. What it raises when it is read goes up unchanged."""
    file = resolve_path(str(path))
    spec = importlib.util.spec_from_file_location(f"stepstack_user_{file.stem}", file)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_name(path: str | Path, name: str) -> Any:
    """The object that a file calls ``name``. ConfigError where there is none, listing the names that there are."""
    module = load_module(path)
    if name not in vars(module):
        public = sorted(key for key in vars(module) if not key.startswith("_"))
        raise ConfigError(f"{path} defines no {name}: it has {', '.join(public)}: name one of these, or define it")
    return vars(module)[name]


def digest(path: str) -> str:
    """sha256 of a file's content."""
    return hashlib.sha256(resolve_path(path).read_bytes()).hexdigest()
