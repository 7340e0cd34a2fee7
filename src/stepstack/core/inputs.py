"""Everything that a run reads, each known by a digest: data, models it begins with, encoders, Python files of a user's
own. No torch."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from stepstack import user_code
from stepstack.config import ROOT, ConfigError, reads, user_files
from stepstack.report import jsonl

INDEXES = ("manifest.json", "latents.json")  # of prepared folders: they hold the digests of the files beside them
PIPELINE_INDEX = "model_index.json"  # of a pipeline of diffusers, whose parts lie in folders
CARD, TRAINING = "README.md", "training.yaml"  # of a model: its card, and the config that trained it
ABOUT = (CARD, TRAINING)
READ_BYTES = 1 << 24


def digests(config: Any) -> dict[str, str]:
    """Path, as the config has it -> sha256, of everything that lies on this machine; what is on a hub is known by its
    name and revision."""
    found = {path: user_code.digest(path) for path in user_files(config)}
    for path in reads(config):
        places = (Path(path), ROOT / path)
        place = next((candidate for candidate in places if candidate.exists()), None)
        if place is not None:
            found[path] = digest_of(place)
    return found


def digest_of(place: Path) -> str:
    """sha256 of a file, of the index of a prepared folder, of all files of a pipeline of diffusers, or of those that
    lie in another folder; what is written about a model (ABOUT) does not count."""
    if place.is_file():
        return _digest((place,))
    index = next((place / name for name in INDEXES if (place / name).is_file()), None)
    if index is not None:
        return _digest((index,))
    parts = place.rglob("*") if (place / PIPELINE_INDEX).is_file() else place.iterdir()
    return _digest(tuple(sorted(file for file in parts if file.is_file() and file.name not in ABOUT)))


def _digest(files: tuple[Path, ...]) -> str:
    stats = [(file, file.stat()) for file in files]
    return _content(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@cache
def _content(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Read once a process: the stages of a run read the same."""
    total = hashlib.sha256()
    for file, _, _ in files:
        if len(files) > 1:
            total.update(file.name.encode())
        with file.open("rb") as handle:
            while part := handle.read(READ_BYTES):
                total.update(part)
    return total.hexdigest()


def refuse_others(folder: Path, config: Any) -> None:
    """ConfigError where the run in ``folder`` read something else than lies there now, by the same path: data that was
    prepared anew, another model in its place. Nothing where there is no run."""
    file = folder / "config.json"
    if not file.is_file():
        return
    recorded, now = jsonl.read_json(file, "files")["files"], digests(config)
    if changed := [path for path in recorded if path in now and now[path] != recorded[path]]:
        raise ConfigError(
            f"{', '.join(changed)}: the run in {folder} read another content there: restore it, or give the run that "
            "reads this another name (name=...)"
        )
