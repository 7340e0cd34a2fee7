"""Open-Reasoner-Zero's mathematics: prepare its published files once (check, dedup, decontaminate), then load by hash.

A source is a ``.json`` or ``.jsonl`` file, a folder of them, or ``hf:owner/name[@split]`` on the Hugging Face hub.
Published forms:

* train: ``[{"from": "human", "value": problem}, {"from": "assistant", "ground_truth": {"value": answer}}]``, or the
  same pair as a table row with the columns "0" and "1", which is how ``datasets`` reads a list of lists;
* eval: ``{"prompt": [{"from": "user", "value": problem}], "final_answer": answer}``, with ``"choices": {"A": text,
  ...}`` when the answer is a letter.

Prepared form: a folder with ``train-00000-of-00002.jsonl`` ..., one ``<eval>.jsonl`` an eval, rows
``{"index", "problem", "gold", "source", "meta"}``, and ``manifest.json``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepstack import __version__
from stepstack.records import Problem
from stepstack.scoring.boxes import unbox
from stepstack.scoring.overlap import NGRAM, Index, normal_text

SCHEMA = 1
SHOWN_ERRORS = 20
MANIFEST = "manifest.json"

TRAIN_FORM = '[{"from": "human", "value": problem}, {"from": "assistant", "ground_truth": {"value": answer}}]'
EVAL_FORM = '{"prompt": [{"from": "user", "value": problem}], "final_answer": answer}'


class DataError(ValueError):
    """Data that cannot be used: names the file, the row, the key and what to do."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a prepared folder is: where it came from, what was dropped and the sha256 of each file.

    ``counts``: read = empty_gold + duplicates + contaminated + kept; ``conflicts`` are the duplicates whose gold
    differs from the kept one; ``contaminated_by`` gives rows per eval (a row may hit several). ``files``: name ->
    split, rows, sha256.
    """

    schema: int
    stepstack: str
    sources: Sequence[Mapping[str, Any]]
    evals: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]
    counts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    text: str
    gold: str
    meta: Mapping[str, Any] = field(default_factory=dict)


def prepare(
    out: Path,
    source: str | Sequence[str],
    evals: Sequence[str],
    *,
    ngram: int = NGRAM,
    drop_empty: bool = False,
    rows_per_shard: int = 50_000,
    overwrite: bool = False,
) -> Manifest:
    """Read ``source`` (or several) and ``evals``, check every row, and write the prepared folder ``out`` in one rename.

    An eval is a source, named by its file stem or dataset name, or ``name=source``. A train problem that repeats an
    earlier one, equals an eval problem or shares ``ngram`` successive words with one is dropped and counted.
    ``drop_empty`` drops train rows without an answer instead of refusing them. ``overwrite`` replaces an earlier
    prepared folder.

    Raises DataError with up to 20 bad rows of all sources; then nothing is written.
    """
    out = Path(out)
    _check_target(out, overwrite)
    errors: list[str] = []
    sources = [source] if isinstance(source, str) else list(source)
    parts = [_read(place, _train_row, errors) for place in sources]
    train = [row for rows, _ in parts for row in rows]
    named = dict(_named(entry) for entry in evals)
    if len(named) != len(evals) or "train" in named:
        raise DataError(f"evals {list(evals)}: each needs its own name other than 'train'; write name=source")
    eval_rows: dict[str, list[_Row]] = {}
    eval_records: dict[str, Mapping[str, Any]] = {}
    for name, place in named.items():
        eval_rows[name], eval_records[name] = _read(place, _eval_row, errors)
    _refuse_empty(eval_rows.values() if drop_empty else [train, *eval_rows.values()], errors)
    _refuse(errors, ", nothing written")

    kept, counts = _filter(train, {name: [r.text for r in rows] for name, rows in eval_rows.items()}, ngram)
    counts["evals"] = {name: len(rows) for name, rows in eval_rows.items()}
    files = dict(_shards(kept, "+".join(sources), rows_per_shard))
    for name, rows in eval_rows.items():
        files[f"{name}.jsonl"] = name, _lines(rows, named[name])
    options = {"ngram": ngram, "drop_empty": drop_empty, "rows_per_shard": rows_per_shard}
    records = [record for _, record in parts]
    return _write(out, files, Manifest(SCHEMA, __version__, records, eval_records, options, counts, {}))


def load(place: Path, split: str) -> list[Problem]:
    """Problems of "train" or of an eval, in order, hashes checked. ``place``: the folder or its manifest.json."""
    path = Path(place)
    path = path / MANIFEST if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path} does not exist: prepare the data first (stepstack data orz_math)")
    manifest = read_manifest(path)
    chosen = {name: info for name, info in sorted(manifest.files.items()) if info["split"] == split}
    if not chosen:
        splits = sorted({info["split"] for info in manifest.files.values()})
        raise DataError(f"{path}: no split {split!r}; there are {', '.join(splits)}")
    problems: list[Problem] = []
    for name, info in chosen.items():
        content = (path.parent / name).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != info["sha256"]:
            raise DataError(
                f"{path.parent / name}: sha256 is {found}, {MANIFEST} says {info['sha256']}: the file was changed "
                "after it was prepared; prepare it again"
            )
        rows = map(json.loads, content.splitlines())
        problems.extend(
            Problem(row["index"], row["problem"], row["gold"], {"source": row["source"], **row["meta"]}) for row in rows
        )
    return problems


def read_eval(source: str | Path, hint: str = "") -> list[Problem]:
    """The problems of an eval as it was published (a source, see above), in order, checked as ``prepare`` does.

    ``meta`` holds the choices where the answer is a letter, and not the source: where a file lies must not tell two
    evaluations of it apart. ``hint`` says in the error for a missing file how to get it.

    Raises DataError with up to 20 bad rows.
    """
    if hint and not _on_hub(str(source)) and not Path(source).exists():
        raise DataError(f"{source} does not exist: {hint}")
    errors: list[str] = []
    rows, _ = _read(str(source), _eval_row, errors)
    return _problems(rows, errors)


def parse_eval(name: Path, content: bytes) -> list[Problem]:
    """``read_eval`` of the bytes of a file; ``name`` is for its suffix and the errors."""
    errors: list[str] = []
    return _problems(_parse(json_rows(name, content), _eval_row, errors), errors)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a prepared folder. DataError for another schema version."""
    content = json.loads(Path(path).read_text())
    if content.get("schema") != SCHEMA:
        raise DataError(f"{path}: schema {content.get('schema')}, this version reads {SCHEMA}; prepare the data again")
    return Manifest(**content)


def hard_set(problems: Sequence[Problem], correct_counts: Sequence[int], fewer_than: int = 4) -> list[Problem]:
    """The problems solved fewer than ``fewer_than`` times: ORZ anneals on those with fewer than 4 of 64 correct.

    ``correct_counts[i]`` belongs to ``problems[i]``. Indices are kept, so groups stay comparable with the full set.
    """
    if len(problems) != len(correct_counts):
        raise ValueError(f"{len(problems)} problems but {len(correct_counts)} counts")
    return [problem for problem, count in zip(problems, correct_counts, strict=True) if count < fewer_than]


def _filter(train: Sequence[_Row], evals: Mapping[str, Sequence[str]], n: int) -> tuple[list[_Row], dict[str, Any]]:
    """The rows that stay, and the counts of the rest."""
    index = Index(evals, n)
    counts = {"read": len(train), "empty_gold": 0, "duplicates": 0, "conflicts": 0, "contaminated": 0}
    by_eval = {name: {"exact": 0, "ngram": 0} for name in evals}
    golds: dict[str, str] = {}
    kept: list[_Row] = []
    for row in train:
        key = normal_text(row.text)
        if not unbox(row.gold):
            counts["empty_gold"] += 1
            continue
        if key in golds:
            counts["duplicates"] += 1
            counts["conflicts"] += golds[key] != row.gold
            continue
        golds[key] = row.gold
        whole, parts = index.hits(row.text)
        exact = {name for name, _ in whole}
        for name in exact | {name for name, _ in parts}:
            by_eval[name]["exact" if name in exact else "ngram"] += 1
        if whole or parts:
            counts["contaminated"] += 1
        else:
            kept.append(row)
    return kept, {**counts, "kept": len(kept), "contaminated_by": by_eval}


def _named(entry: str) -> tuple[str, str]:
    """(name, source) of an eval argument."""
    name, equals, place = entry.partition("=")
    if equals:
        return name, place
    return (
        entry.removeprefix("hf:").partition("@")[0].rpartition("/")[2] if _on_hub(entry) else Path(entry).stem
    ), entry


def _on_hub(source: str) -> bool:
    return source.startswith("hf:")


def _read(source: str, parse: Any, errors: list[str]) -> tuple[list[_Row], dict[str, Any]]:
    """Rows of a source and its provenance; bad rows are added to ``errors``."""
    if _on_hub(source):
        entries, digests = _read_hub(source)
    else:
        path = Path(source)
        if not path.exists():
            raise DataError(f"{source} does not exist: give a .json or .jsonl file, a folder of them, or hf:owner/name")
        files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{source}: no .json or .jsonl file in this folder")
        entries, digests = [], {}
        for file in files:
            content = file.read_bytes()
            digests[file.name] = hashlib.sha256(content).hexdigest()
            entries.extend(json_rows(file, content))
    if not entries:
        raise DataError(f"{source}: no rows")
    return _parse(entries, parse, errors), {"name": source, "rows": len(entries), "sha256": digests}


def _parse(entries: Iterable[tuple[str, Any]], parse: Any, errors: list[str]) -> list[_Row]:
    """Rows of (place, JSON value); bad ones are added to ``errors``."""
    rows = []
    for where, raw in entries:
        try:
            text, gold, meta = parse(raw)
        except _BadRow as bad:
            errors.append(f"{where}: {bad}")
        else:
            rows.append(_Row(where, text, gold, meta))
    return rows


def _problems(rows: Sequence[_Row], errors: list[str]) -> list[Problem]:
    _refuse_empty([rows], errors)
    _refuse(errors)
    return [Problem(index, row.text, row.gold, row.meta) for index, row in enumerate(rows)]


def json_rows(file: Path, content: bytes) -> list[tuple[str, Any]]:
    """(place, JSON value) of each row of a file."""
    if content.startswith(b"version https://git-lfs"):
        raise DataError(f"{file}: a Git LFS pointer, not the data: run `git lfs pull` in its repository")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}; convert it") from None
    number = 1
    try:
        if file.suffix == ".jsonl":
            entries = []
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    entries.append((f"{file} line {number}", json.loads(line)))
            return entries
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {number if file.suffix == '.jsonl' else error.lineno} column {error.colno}"
        raise DataError(f"{file} {place}: not JSON: {error.msg}; download it again or repair that line") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: must be a list of rows, not {type(rows).__name__}")
    return [(f"{file} row {number}", row) for number, row in enumerate(rows, 1)]


def _read_hub(source: str) -> tuple[list[tuple[str, Any]], dict[str, str]]:
    """Rows of ``hf:owner/name[@split]``; the digest is of the rows, since the hub may store them in any format."""
    import datasets

    repository, _, split = source.removeprefix("hf:").partition("@")
    rows = [dict(row) for row in datasets.load_dataset(repository, split=split or "train")]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
    return [(f"{source} row {number}", row) for number, row in enumerate(rows, 1)], {repository: digest}


class _BadRow(Exception):
    """Why a row is refused; the reader adds the place."""


def _train_row(raw: Any) -> tuple[str, str, dict[str, Any]]:
    if isinstance(raw, Mapping) and "0" in raw and "1" in raw:
        raw = [raw["0"], raw["1"]]
    if not isinstance(raw, list) or len(raw) != 2:
        size = f" of {len(raw)}" if isinstance(raw, list | Mapping) else ""
        raise _BadRow(f"expected {TRAIN_FORM}, found {type(raw).__name__}{size}")
    for number, speakers in ((0, ("human", "user")), (1, ("assistant", "gpt"))):
        speaker = _text(raw[number], f"[{number}]", ("from",), TRAIN_FORM)
        if speaker not in speakers:
            raise _BadRow(f"key [{number}].from is {speaker!r}, expected {speakers[0]!r}: are the two turns swapped?")
    problem = _text(raw[0], "[0]", ("value",), TRAIN_FORM)
    gold = _text(raw[1], "[1]", ("ground_truth", "value"), TRAIN_FORM)
    return _full(problem, "[0].value"), gold.strip(), {}


def _eval_row(raw: Any) -> tuple[str, str, dict[str, Any]]:
    gold = _text(raw, "", ("final_answer",), EVAL_FORM).strip()
    turns = raw.get("prompt")
    if not isinstance(turns, list) or len(turns) != 1:
        raise _BadRow(f"key prompt must be a list of one turn: expected {EVAL_FORM}")
    problem = _full(_text(turns[0], "prompt[0]", ("value",), EVAL_FORM), "prompt[0].value")
    choices = raw.get("choices")
    if choices is None:
        return problem, gold, {}
    if not isinstance(choices, Mapping) or not all(isinstance(text, str) for text in choices.values()):
        raise _BadRow('key choices must map letters to texts: {"A": text, "B": text, ...}')
    if gold not in choices:
        raise _BadRow(f"key final_answer is {gold!r}, not one of the choices {', '.join(choices)}")
    return problem, gold, {"choices": dict(choices)}


def _text(value: Any, place: str, keys: Sequence[str], form: str) -> str:
    """The string at ``value[keys[0]][keys[1]]...``; the refusal names the whole key and the expected form."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise _BadRow(f"key {f'{place}.{key}'.lstrip('.')} is missing: expected {form}")
        value = value[key]
        place = f"{place}.{key}"
    if not isinstance(value, str):
        raise _BadRow(f"key {place.lstrip('.')} must be text, not {type(value).__name__}: put it in quotes")
    return value


def _full(problem: str, key: str) -> str:
    if not problem.strip():
        raise _BadRow(f"key {key} is empty: remove the row")
    return problem


def _refuse_empty(groups: Iterable[Sequence[_Row]], errors: list[str]) -> None:
    for rows in groups:
        errors.extend(
            f"{row.where}: the answer is empty, and an empty gold calls every empty answer correct: fill it in, remove "
            "the row, or set drop_empty (train rows only)"
            for row in rows
            if not unbox(row.gold)
        )


def _refuse(errors: Sequence[str], outcome: str = "") -> None:
    if errors:
        more = f"\n... and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise DataError(f"{len(errors)} bad rows{outcome}:\n" + "\n".join(errors[:SHOWN_ERRORS]) + more)


def _lines(rows: Sequence[_Row], source: str, first: int = 0) -> bytes:
    """JSON lines; ``first`` is the index of the first row."""
    lines = [
        json.dumps(
            {"index": index, "problem": row.text, "gold": row.gold, "source": source, "meta": row.meta},
            ensure_ascii=False,
        )
        for index, row in enumerate(rows, first)
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _shards(rows: Sequence[_Row], source: str, size: int) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """(file name, ("train", content)) of near-equal shards of at most ``size`` rows; at least one, even if empty."""
    if size < 1:
        raise ValueError(f"rows_per_shard={size} must be at least 1")
    count = max(1, -(-len(rows) // size))
    for shard in range(count):
        start, end = len(rows) * shard // count, len(rows) * (shard + 1) // count
        yield f"train-{shard:05d}-of-{count:05d}.jsonl", ("train", _lines(rows[start:end], source, start))


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise DataError(f"{out} exists: remove it, choose another folder, or set overwrite")
    if not (out / MANIFEST).is_file():
        raise DataError(f"{out} is not a prepared folder (no {MANIFEST}) and is not overwritten: choose another folder")


def _write(out: Path, files: Mapping[str, tuple[str, bytes]], manifest: Manifest) -> Manifest:
    """Everything into a folder beside ``out``, synced, then one rename: ``out`` is whole or absent."""
    described = {
        name: {"split": split, "rows": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}
        for name, (split, content) in files.items()
    }
    manifest = dataclasses.replace(manifest, files=described)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        for name, (_, content) in files.items():
            _write_synced(temporary / name, content)
        text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
        _write_synced(temporary / MANIFEST, f"{text}\n".encode())
        _sync_folder(temporary)
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
    return manifest


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
