"""The four benchmarks of Open-Reasoner-Zero's table (arXiv 2503.24290, table 1), in ORZ's eval schema (``orz_math``).

AIME 2024, MATH-500 and GPQA-Diamond are files of its GitHub repository (MIT licence), byte for byte. Sizes and hashes
were taken from a clone at that commit. GPQA's rows hold the lettered choices inside the prompt, in ORZ's order. Its
authors ask not to publish its questions in plain text.

AIME 2025 is not in that repository. Here it is the hub's data set math-ai/aime25 (columns problem, answer, id), both
exams in one file. Its revision and hash agree in several public repositories that pin it. It was not downloaded when
this was written.
"""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from data.errors import DataError
from data.media.texts import json_rows
from data.sets.orz_math import parse_eval, read_eval
from stepstack.records import Problem
from stepstack.report import jsonl

ORZ = (
    "https://raw.githubusercontent.com/Open-Reasoner-Zero/Open-Reasoner-Zero/"
    "3fdd9a07b4fb01e06005e6e74fc56690cde8a341/data/eval_data"
)
AIME25 = "https://huggingface.co/datasets/math-ai/aime25/resolve/563bb8404243c5f09de6ec262f2db674fe5bce9b/test.jsonl"
TIMEOUT = 60  # seconds without an answer of the server


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Benchmark that can be fetched.

    ``file``: its name in the folder of benchmark data. ``rows``: its number of rows. ``url`` and ``sha256`` of the
    published bytes. ``pairs``: these are JSON lines of problem and answer (.jsonl), not yet in ORZ's schema.
    """

    name: str
    file: str
    rows: int
    url: str
    sha256: str
    pairs: bool = False


BENCHMARKS = (
    Benchmark(
        name="aime24",
        file="aime2024.json",
        rows=30,
        url=f"{ORZ}/aime2024.json",
        sha256="ef02255e61539115f6274a0765ff10076df416db5f90d41500d472cb5184e560",
    ),
    Benchmark(
        name="aime25",
        file="aime2025.json",
        rows=30,
        url=AIME25,
        sha256="b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331",
        pairs=True,
    ),
    Benchmark(
        name="math500",
        file="math500.json",
        rows=500,
        url=f"{ORZ}/math500.json",
        sha256="236bd0cc329ee3efaf045a150e6473e4f420e7e7e17051a4e77a1f2688599e63",
    ),
    Benchmark(
        name="gpqa_diamond",
        file="gpqa_diamond.json",
        rows=198,
        url=f"{ORZ}/gpqa_diamond.json",
        sha256="0cc1a9474957fa91ea5d6e9a901cab528576cddcd639ffb51240a77bab7678e2",
    ),
)


def benchmark(name: str) -> Benchmark:
    """Benchmark of a name. DataError for an unknown name, listing the four."""
    for known in BENCHMARKS:
        if known.name == name:
            return known
    raise DataError(f"no benchmark {name!r}: there are {', '.join(known.name for known in BENCHMARKS)}")


def load(name: str, folder: Path) -> list[Problem]:
    """Problems of a benchmark from its file in ``folder``.

    DataError for a file that does not exist (with the way to get it), has bad rows, or another number of them.
    """
    known = benchmark(name)
    hint = f"run `stepstack tasks --fetch {name}`, or, without network, `... --from PATH` with a copy of {known.url}"
    path = folder / known.file
    return _counted(known, read_eval(path, hint), str(path))


def fetch(names: Sequence[str], out: Path, source: str | None = None) -> list[Path]:
    """Write the file of each named benchmark into ``out``, atomically, and return their paths.

    The content comes from ``source``, a folder that holds files of these names or one file (as published, or in ORZ's
    eval schema; its rows are checked and counted). Without ``source`` it is downloaded, and its sha256 must be the
    published one. Existing files are replaced. DataError with what to do; files written before it stay.
    """
    chosen = [benchmark(name) for name in names]
    if source is not None and len(chosen) > 1 and Path(source).is_file():
        raise DataError(f"--from {source} is one file and {len(chosen)} benchmarks are asked for: fetch one at a time")
    written = []
    for known in chosen:
        place, content = _download(known) if source is None else _local(known, Path(source))
        path = out / known.file
        if known.pairs and place.endswith(".jsonl"):
            content = from_pairs(Path(place), content)
        problems = parse_eval(path if source is None else Path(place).with_suffix(".json"), content)
        _counted(known, problems, place)
        jsonl.write_text_atomic(path, content.decode())
        written.append(path)
    return written


def from_pairs(name: Path, content: bytes) -> bytes:
    """JSON list in ORZ's eval schema from JSON lines of problem and answer. ``name``: name of the file, for the errors.

    DataError names the line that has no such keys.
    """
    entries = []
    for where, row in json_rows(name, content):
        if not isinstance(row, dict) or not row.keys() >= {"problem", "answer"}:
            raise DataError(f'{where}: expected {{"problem": text, "answer": text}}; download it again')
        turn = {"from": "user", "value": row["problem"]}
        entries.append({"prompt": [turn], "final_answer": str(row["answer"])})
    return (json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode()


def _counted(known: Benchmark, problems: list[Problem], place: str) -> list[Problem]:
    if len(problems) != known.rows:
        raise DataError(
            f"{place} has {len(problems)} rows, {known.name} has {known.rows}: fetch it again "
            f"(`stepstack tasks --fetch {known.name}`)"
        )
    return problems


def _local(known: Benchmark, source: Path) -> tuple[str, bytes]:
    """Place and content of a file, or of the benchmark's own file in a folder."""
    path = source / known.file if source.is_dir() else source
    takes = (".json", ".jsonl") if known.pairs else (".json",)
    if not path.is_file() or path.suffix not in takes:
        why = f"is no {' or '.join(takes)} file" if path.is_file() else "does not exist"
        raise DataError(f"{path} {why}: --from takes a folder that holds {known.file}, or a copy of {known.url}")
    return str(path), path.read_bytes()


def _download(known: Benchmark) -> tuple[str, bytes]:
    try:
        with urllib.request.urlopen(known.url, timeout=TIMEOUT) as answer:
            content: bytes = answer.read()
    except (OSError, HTTPException) as error:  # no network, no such host, 404, cut off in the middle
        raise DataError(
            f"{known.name}: {known.url} cannot be downloaded ({error}): get it on a machine that can, then run "
            f"`stepstack tasks --fetch {known.name} --from PATH`"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != known.sha256:
        raise DataError(
            f"{known.name}: {known.url} came with sha256 {digest}, expected {known.sha256}: not what was published; "
            "nothing written. Look at it, then give a copy that you trust with --from"
        )
    return known.url, content
