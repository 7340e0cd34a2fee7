"""Open-Reasoner-Zero's mathematics: prepare its published files once (check, dedup, decontaminate), then load by hash.

A source is a ``.json`` or ``.jsonl`` file, a folder of them, or ``hf:owner/name[@split]`` on the Hugging Face hub.
Published forms:

* train: ``[{"from": "human", "value": problem}, {"from": "assistant", "ground_truth": {"value": answer}}]``, or the
  same pair as a table row with the columns "0" and "1", into which ``datasets`` reads a list of lists;
* eval: ``{"prompt": [{"from": "user", "value": problem}], "final_answer": answer}``, with ``"choices": {"A": text,
  ...}`` when the answer is a letter.

Prepared form: a folder with ``train-00000-of-00002.jsonl`` ..., one ``<eval>.jsonl`` an eval, rows ``{"index",
"problem", "gold", "source", "meta"}``, and ``manifest.json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import MAX_ERRORS, BadRow, DataError, refuse
from data.media.texts import json_rows
from data.prepare.manifest import (
    MANIFEST,
    SCHEMA,
    Manifest,
    check_target,
    json_lines,
    named_sources,
    new_folder,
    on_hub,
    read_manifest,
    read_source,
    split_rows,
    text_at,
    write_files,
)
from stepstack import __version__
from stepstack.records import Problem
from stepstack.scoring.maths.boxed import unbox
from stepstack.scoring.maths.golds import why_unreadable
from stepstack.scoring.text.overlap import NGRAM, Index, normal_text

DATA = "orz_math"

TRAIN_FORM = '[{"from": "human", "value": problem}, {"from": "assistant", "ground_truth": {"value": answer}}]'
EVAL_FORM = '{"prompt": [{"from": "user", "value": problem}], "final_answer": answer}'


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
    algebra: bool = True,
    drop_empty: bool = False,
    rows_per_shard: int = 50_000,
    overwrite: bool = False,
) -> Manifest:
    """Read ``source`` (or several) and ``evals``, check every row, and write the prepared folder ``out`` in one rename.

    An eval is a source, named by its file stem or dataset name, or ``name=source``. A train problem that repeats an
    earlier one, equals an eval problem or shares ``ngram`` successive words with one is dropped and counted.
    With ``algebra`` (answers are graded as mathematics) golds that cannot be read so are counted as "unreadable", and
    the first 20 listed in the manifest; letters of choices are none. ``drop_empty`` drops train rows without an answer
    instead of refusing them. ``overwrite`` replaces an earlier prepared folder.

    Raises DataError with up to 20 bad rows of all sources, or where no train row is left; then nothing is written.
    """
    out = Path(out)
    check_target(out, overwrite)
    errors: list[str] = []
    sources = [source] if isinstance(source, str) else list(source)
    parts = [_read(place, _train_row, errors) for place in sources]
    train = [row for rows, _ in parts for row in rows]
    named = named_sources(evals)
    eval_rows: dict[str, list[_Row]] = {}
    eval_records: dict[str, Mapping[str, Any]] = {}
    for name, place in named.items():
        eval_rows[name], eval_records[name] = _read(place, _eval_row, errors)
    _refuse_empty(eval_rows.values() if drop_empty else [train, *eval_rows.values()], errors)
    refuse(errors, ", nothing written")

    train_rows, counts = _filter(train, {name: [r.text for r in rows] for name, rows in eval_rows.items()}, ngram)
    if not train_rows:
        raise DataError(f"no train row is left ({counts}): give a source whose problems are not in the evals")
    counts["evals"] = {name: len(rows) for name, rows in eval_rows.items()}
    unreadable = _unreadable([*train_rows, *(row for rows in eval_rows.values() for row in rows)]) if algebra else []
    counts |= {"unreadable": len(unreadable), "unreadable_golds": unreadable[:MAX_ERRORS]}
    files = dict(_shards(train_rows, "+".join(sources), rows_per_shard))
    for name, rows in eval_rows.items():
        files[f"{name}.jsonl"] = name, _lines(rows, named[name])
    options = {"ngram": ngram, "algebra": algebra, "drop_empty": drop_empty, "rows_per_shard": rows_per_shard}
    records = [record for _, record in parts]
    manifest = Manifest(SCHEMA, __version__, DATA, records, eval_records, options, counts, {})
    with new_folder(out) as folder:
        return write_files(folder, files, manifest)


def load(place: Path, split: str) -> list[Problem]:
    """Problems of "train" or of an eval, in order, with hashes checked. ``place``: the folder or its manifest.json."""
    path = Path(place) / MANIFEST if Path(place).is_dir() else Path(place)
    return [
        Problem(row["index"], row["problem"], row["gold"], {"source": row["source"], **row["meta"]})
        for row in split_rows(path, read_manifest(path, DATA), split)
    ]


def read_eval(source: str | Path, hint: str = "") -> list[Problem]:
    """Problems of a published eval (a source, see above), in order, checked like in ``prepare``.

    ``meta`` holds the choices where the answer is a letter, and not the source, so that the place of a file does not
    distinguish two evaluations of it. ``hint`` tells in the error for a missing file how to get it. DataError with up
    to 20 bad rows.
    """
    if hint and not on_hub(str(source)) and not Path(source).exists():
        raise DataError(f"{source} does not exist: {hint}")
    errors: list[str] = []
    rows, _ = _read(str(source), _eval_row, errors)
    return _problems(rows, errors)


def parse_eval(name: Path, content: bytes) -> list[Problem]:
    """Problems of the bytes of a file, like ``read_eval``; ``name`` is for its suffix and the errors."""
    errors: list[str] = []
    return _problems(_parse(json_rows(name, content), _eval_row, errors), errors)


def hard_set(problems: Sequence[Problem], correct_counts: Sequence[int], fewer_than: int = 4) -> list[Problem]:
    """Problems solved fewer than ``fewer_than`` times: ORZ anneals on those with fewer than 4 of 64 correct.

    ``correct_counts[i]`` belongs to ``problems[i]``. Indices are kept, so groups stay comparable with the full set.
    """
    if len(problems) != len(correct_counts):
        raise ValueError(f"{len(problems)} problems but {len(correct_counts)} counts: give one for each")
    return [problem for problem, count in zip(problems, correct_counts, strict=True) if count < fewer_than]


def _filter(train: Sequence[_Row], evals: Mapping[str, Sequence[str]], n: int) -> tuple[list[_Row], dict[str, Any]]:
    """Rows that stay, and the counts of the rest."""
    index = Index(evals, n)
    counts = {"read": len(train), "empty_gold": 0, "duplicates": 0, "conflicts": 0, "contaminated": 0}
    by_eval = {name: {"exact": 0, "ngram": 0} for name in evals}
    golds: dict[str, str] = {}
    clean: list[_Row] = []
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
            clean.append(row)
    return clean, {**counts, "kept": len(clean), "contaminated_by": by_eval}


def _unreadable(rows: Sequence[_Row]) -> list[str]:
    """A line for each row whose gold no algebra can compare."""
    reasons = ((row, why_unreadable(row.gold)) for row in rows if "choices" not in row.meta)
    return [f"{row.where}: {row.gold[:80]!r} is {why}" for row, why in reasons if why is not None]


def _read(source: str, parse: Any, errors: list[str]) -> tuple[list[_Row], Mapping[str, Any]]:
    """Rows of a source and its provenance. Bad rows are added to ``errors``."""
    raw = read_source(source)
    return _parse(raw.rows, parse, errors), raw.record


def _parse(entries: Iterable[tuple[str, Any]], parse: Any, errors: list[str]) -> list[_Row]:
    """Rows of pairs (place, JSON value). Bad ones are added to ``errors``."""
    rows = []
    for where, raw in entries:
        try:
            text, gold, meta = parse(raw)
        except BadRow as bad:
            errors.append(f"{where}: {bad}")
        else:
            rows.append(_Row(where, text, gold, meta))
    return rows


def _problems(rows: Sequence[_Row], errors: list[str]) -> list[Problem]:
    _refuse_empty([rows], errors)
    refuse(errors)
    return [Problem(index, row.text, row.gold, row.meta) for index, row in enumerate(rows)]


def _train_row(raw: Any) -> tuple[str, str, dict[str, Any]]:
    if isinstance(raw, Mapping) and "0" in raw and "1" in raw:
        raw = [raw["0"], raw["1"]]
    if not isinstance(raw, list) or len(raw) != 2:
        size = f" of {len(raw)}" if isinstance(raw, list | Mapping) else ""
        raise BadRow(f"expected {TRAIN_FORM}, found {type(raw).__name__}{size}")
    for number, speakers in ((0, ("human", "user")), (1, ("assistant", "gpt"))):
        speaker = text_at(raw[number], f"[{number}]", ("from",), TRAIN_FORM)
        if speaker not in speakers:
            raise BadRow(f"key [{number}].from is {speaker!r}, expected {speakers[0]!r}: are the two turns swapped?")
    problem = text_at(raw[0], "[0]", ("value",), TRAIN_FORM)
    gold = text_at(raw[1], "[1]", ("ground_truth", "value"), TRAIN_FORM)
    return _full(problem, "[0].value"), gold.strip(), {}


def _eval_row(raw: Any) -> tuple[str, str, dict[str, Any]]:
    gold = text_at(raw, "", ("final_answer",), EVAL_FORM).strip()
    turns = raw.get("prompt")
    if not isinstance(turns, list) or len(turns) != 1:
        raise BadRow(f"key prompt must be a list of one turn: expected {EVAL_FORM}")
    problem = _full(text_at(turns[0], "prompt[0]", ("value",), EVAL_FORM), "prompt[0].value")
    choices = raw.get("choices")
    if choices is None:
        return problem, gold, {}
    if not isinstance(choices, Mapping) or not all(isinstance(text, str) for text in choices.values()):
        raise BadRow('key choices must map letters to texts: {"A": text, "B": text, ...}')
    if gold not in choices:
        raise BadRow(f"key final_answer is {gold!r}, not one of the choices {', '.join(choices)}")
    return problem, gold, {"choices": dict(choices)}


def _full(problem: str, key: str) -> str:
    if not problem.strip():
        raise BadRow(f"key {key} is empty: remove the row")
    return problem


def _refuse_empty(groups: Iterable[Sequence[_Row]], errors: list[str]) -> None:
    for rows in groups:
        errors.extend(
            f"{row.where}: the answer is empty, and an empty gold calls every empty answer correct: fill it in, remove "
            "the row, or set drop_empty (train rows only)"
            for row in rows
            if not unbox(row.gold)
        )


def _lines(rows: Sequence[_Row], source: str, first: int = 0) -> bytes:
    """JSON lines; ``first`` is the index of the first row."""
    return json_lines(
        {"index": index, "problem": row.text, "gold": row.gold, "source": source, "meta": row.meta}
        for index, row in enumerate(rows, first)
    )


def _shards(rows: Sequence[_Row], source: str, size: int) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """Pairs (file name, ("train", content)) of near-equal shards of at most ``size`` rows; at least one, even if
    empty."""
    if size < 1:
        raise ValueError(f"rows_per_shard={size}: set it to at least 1")
    count = max(1, -(-len(rows) // size))
    for shard in range(count):
        start, end = len(rows) * shard // count, len(rows) * (shard + 1) // count
        yield f"train-{shard:05d}-of-{count:05d}.jsonl", ("train", _lines(rows[start:end], source, start))
