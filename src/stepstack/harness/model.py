"""Which model was evaluated: a hash over what decides its answers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from stepstack.config import ROOT, ConfigError
from stepstack.core.inputs import PIPELINE_INDEX
from stepstack.models.whole import reading

WEIGHTS = (".safetensors", ".bin")
CONFIG_FILES = (".json", ".txt", ".model", ".jinja")  # configs, tokenizers, templates
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
READ_BYTES = 1 << 24


def folder_of(name: str) -> Path:
    """A Hugging Face folder with weights and tokenizer, or a pipeline of diffusers; or the local snapshot of a hub name
    (downloaded if need be).

    ConfigError that says what is missing.
    """
    folder = Path(name)
    if not folder.exists() and name.count("/") == 1 and not name.startswith((".", "/")):
        with reading(name):
            folder = Path(snapshot_download(name, allow_patterns=[f"*{end}" for end in WEIGHTS + CONFIG_FILES]))
    if (folder / PIPELINE_INDEX).is_file():
        return folder
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{name} holds no model (no config.json): train first (make train), or give MODEL=folder")
    if not any(file.suffix in WEIGHTS for file in folder.iterdir()):
        raise ConfigError(f"{name} holds no weights ({', '.join(WEIGHTS)}): give the folder of an exported model")
    if not any((folder / file).is_file() for file in TOKENIZER):
        raise ConfigError(f"{name} holds no tokenizer ({', '.join(TOKENIZER)}): save the one it was trained with there")
    return folder


def record(folder: Path, name: str | None = None) -> dict[str, Any]:
    """name and sha256 of a model folder: weights, configs and tokenizer, not training state."""
    total = hashlib.sha256()
    parts = folder.rglob("*") if (folder / PIPELINE_INDEX).is_file() else folder.iterdir()
    for file in sorted(f for f in parts if f.suffix in WEIGHTS + CONFIG_FILES):
        total.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as handle:
            while part := handle.read(READ_BYTES):
                total.update(part)
    return {"name": shown_path(name or str(folder)), "sha256": total.hexdigest()}


def shown_path(name: str) -> str:
    """A hub name, or a path without what is one machine's: below the repository, else its last two parts."""
    path = Path(name)
    if not path.is_absolute():
        return name
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(Path(*path.parts[-2:]))
