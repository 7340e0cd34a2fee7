"""Common parts of all prepared data: reading sources, refusing bad rows together, folders that are complete or absent.

A source is a ``.json`` or ``.jsonl`` file, a folder of them, or ``hf:name[@split]``: a data set of the Hugging Face
hub, or a local folder of parquet files. A prepared folder holds JSON lines and ``manifest.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import BadRow, DataError
from data.media.texts import json_rows

SCHEMA = 2
MANIFEST = "manifest.json"
HUB = "hf:"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Manifest of a prepared folder: its sources, the dropped rows and the sha256 of each file.

    ``data``: the module of ``data`` that wrote it and reads it. ``counts``: numbers of read, dropped and kept rows,
    with keys of that module. ``files``: name -> split, rows, sha256.
    """

    schema: int
    stepstack: str
    data: str
    sources: Sequence[Mapping[str, Any]]
    evals: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]
    counts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """Source of rows. ``rows``: (place, JSON value) of each row, to be read once. ``record``: name, number of rows and
    hashes."""

    rows: Iterable[tuple[str, Any]]
    record: Mapping[str, Any]


def read_source(source: str) -> Source:
    """Rows of a source. DataError where it is missing, unreadable or empty."""
    if on_hub(source):
        return _read_hub(source)
    path = Path(source)
    if not path.exists():
        raise DataError(f"{source} does not exist: give a .json or .jsonl file, a folder of them, or {HUB}owner/name")
    files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{source}: no .json or .jsonl file in this folder: name the one with the rows")
    rows: list[tuple[str, Any]] = []
    digests = {}
    for file in files:
        content = file.read_bytes()
        digests[file.name] = hashlib.sha256(content).hexdigest()
        rows.extend(json_rows(file, content))
    if not rows:
        raise DataError(f"{source}: no rows: give a source that has some")
    return Source(rows, {"name": source, "rows": len(rows), "sha256": digests})


def on_hub(source: str) -> bool:
    return source.startswith(HUB)


def named_sources(entries: Sequence[str]) -> dict[str, str]:
    """Map from name to source of eval arguments: ``name=source``, or a source named by its file stem or data set
    name."""
    named = dict(_named(entry) for entry in entries)
    if len(named) != len(entries) or "train" in named:
        raise DataError(f"evals {list(entries)}: each needs its own name other than 'train'; write name=source")
    return named


def text_at(value: Any, place: str, keys: Sequence[str], form: str) -> str:
    """String at ``value[keys[0]][keys[1]]...``. BadRow names the whole key and the expected form."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise BadRow(f"key {f'{place}.{key}'.lstrip('.')} is missing: expected {form}")
        value = value[key]
        place = f"{place}.{key}"
    if not isinstance(value, str):
        do = "give one text" if isinstance(value, list | Mapping) else "put it in quotes"
        raise BadRow(f"key {place.lstrip('.')} must be text, not {type(value).__name__}: {do}")
    return value


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def check_target(out: Path, overwrite: bool) -> None:
    """Raise DataError unless a prepared folder may be written at ``out``."""
    if not out.exists():
        return
    if not overwrite:
        raise DataError(f"{out} exists: remove it, choose another folder, or set overwrite")
    if not (out / MANIFEST).is_file():
        raise DataError(f"{out} is not a prepared folder (no {MANIFEST}) and is not overwritten: choose another folder")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Empty folder beside ``out`` that takes its place in one rename when the block ends.

    So ``out`` is complete or absent, also after a crash. An exception of the block removes the folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        yield temporary
        for folder in [temporary, *(path for path in temporary.rglob("*") if path.is_dir())]:
            _sync_folder(folder)
        if out.exists():
            old = out.parent / f"{temporary.name}.old"
            out.rename(old)
            temporary.rename(out)
            shutil.rmtree(old)
        else:
            temporary.rename(out)
        _sync_folder(out.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def write_files(folder: Path, files: Mapping[str, tuple[str, bytes]], manifest: Manifest) -> Manifest:
    """Write ``files`` (name -> split, JSON lines) and the manifest, with their rows and hashes, into ``folder``."""
    described = {
        name: {"split": split, "rows": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}
        for name, (split, content) in files.items()
    }
    manifest = dataclasses.replace(manifest, files=described)
    for name, (_, content) in files.items():
        write_synced(folder / name, content)
    text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
    write_synced(folder / MANIFEST, f"{text}\n".encode())
    return manifest


def write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(path: Path, data: str | None = None) -> Manifest:
    """Manifest of a folder that ``data`` prepared (None: any). DataError for another kind or schema version."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: prepare the data first (stepstack data)")
    content = _read_object(path)
    if content.get("schema") != SCHEMA:
        raise DataError(f"{path}: schema {content.get('schema')}, this version reads {SCHEMA}; prepare the data again")
    keys = {item.name for item in dataclasses.fields(Manifest)}
    if differ := sorted(keys ^ content.keys()):
        raise DataError(f"{path}: missing or unknown keys {', '.join(differ)}: prepare the data again")
    if not isinstance(content["files"], dict) or not all(isinstance(info, dict) for info in content["files"].values()):
        raise DataError(f"{path}: files must be a map of maps: prepare the data again")
    if elsewhere := [name for name in content["files"] if Path(name).name != name]:
        raise DataError(f"{path} names {elsewhere[0]}, which leads out of its folder: prepare the data again")
    manifest = Manifest(**content)
    if data is not None and manifest.data != data:
        raise DataError(f"{path}: holds data of {manifest.data}, not of {data}: name the right folder")
    return manifest


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): prepare the data again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold an object, not {type(content).__name__}: prepare the data again")
    return content


def split_rows(path: Path, manifest: Manifest, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a split beside the manifest at ``path``, in order, with hashes checked."""
    chosen = {name: info for name, info in sorted(manifest.files.items()) if info.get("split") == split}
    if not chosen:
        splits = sorted({str(info.get("split")) for info in manifest.files.values()})
        raise DataError(f"{path}: no split {split!r}; there are {', '.join(splits)}")
    for name, info in chosen.items():
        if not (path.parent / name).is_file():
            raise DataError(f"{path.parent / name} does not exist, though {MANIFEST} names it: prepare the data again")
        content = (path.parent / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != info.get("sha256"):
            raise DataError(
                f"{path.parent / name}: sha256 is {digest}, {MANIFEST} says {info.get('sha256')}: the file was changed "
                "after it was prepared; prepare it again"
            )
        yield from map(json.loads, content.splitlines())


def _named(entry: str) -> tuple[str, str]:
    name, equals, place = entry.partition("=")
    if equals:
        return name, place
    stem = entry.removeprefix(HUB).partition("@")[0].rpartition("/")[2] if on_hub(entry) else Path(entry).stem
    return stem, entry


def _read_hub(source: str) -> Source:
    """Rows of ``hf:name[@split]``.

    The digest is that of the rows, since the hub may store them in any format. Pictures stay undecoded, ``{"bytes":
    content, "path": name}``, and rows on the disk until they are read.
    """
    import datasets

    name, _, split = source.removeprefix(HUB).partition("@")
    try:
        table = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError) as error:  # as datasets raises for names, splits and files that it does not find
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{source} cannot be read ({why}): correct the name or @split, or give local files") from None
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    if not len(table):
        raise DataError(f"{source}: no rows: give a source that has some")
    digest = hashlib.sha256()
    for row in table:
        digest.update(json.dumps(row, sort_keys=True, default=_hashable).encode())
    rows = ((f"{source} row {number}", dict(row)) for number, row in enumerate(table, 1))
    return Source(rows, {"name": source, "rows": len(table), "sha256": {name: digest.hexdigest()}})


def _hashable(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
