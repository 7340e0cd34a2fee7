"""Tokens of a real corpus in rows of fixed length, written once by `stepstack data` and mapped into memory after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.drawn import grammar
from data.drawn.grammar import Grammar
from recipes.steplaw.config import Config, Corpus
from stepstack.config import ROOT, ConfigError
from stepstack.report import jsonl
from stepstack.report.provenance import provenance

SHARD = 1 << 26  # tokens in a file
TRAIN, HELD_OUT = 0, 1


def token_rows(cfg: Config, stream: int, first: int, count: int) -> NDArray[np.int64]:
    """Rows [count, sequence + 1] of the training or the held-out stream, the same for every point of the sweep."""
    width = cfg.sequence + 1
    if isinstance(cfg.data, Grammar):
        return grammar.rows(cfg.data, cfg.seed, stream, first, count, width)
    return TokenRows.open(str(ROOT / cfg.data.folder), stream, width).take(first, count)


def prepare(cfg: Config) -> str:
    """Write the rows for the largest cell and the evaluation. Rows of the held-out stream come first from the
    corpus."""
    if isinstance(cfg.data, Grammar):
        return "nothing to prepare: the text is made on the spot, a pure function of the seed"
    out, need = ROOT / cfg.data.folder, rows_needed(cfg)
    stream = packed(documents(cfg.data, cfg.seed), cfg.sequence + 1)
    facts: dict[str, Any] = {"width": cfg.sequence + 1, "data": str(cfg.data), "provenance": provenance()}
    for place, (name, rows) in enumerate((("held_out", cfg.held_out_rows), ("train", need))):
        facts[name] = _write(out, name, stream, rows, cfg.sequence + 1)
        if facts[name]["rows"] < rows:
            raise ConfigError(
                f"data.dataset={cfg.data.dataset} ended after {facts[name]['rows']} of {rows} {name} rows of "
                f"{cfg.sequence + 1} tokens: give more files, or fewer tokens to cells"
            )
        print(f"{place + 1}/2 {name}: {rows} rows")
    jsonl.write_json_atomic(out / "manifest.json", facts)
    return str(out)


def rows_needed(cfg: Config) -> int:
    return max(point.steps * point.batch for point in cfg.points)


def documents(cfg: Corpus, seed: int) -> Iterator[list[int]]:
    """Token ids of each document and the end of text."""
    import datasets
    from transformers import AutoTokenizer

    from stepstack.models.whole import reading

    with reading(cfg.tokenizer):
        tokenizer = AutoTokenizer.from_pretrained(cfg.tokenizer)
    if len(tokenizer) > cfg.vocab:
        raise ConfigError(
            f"data.tokenizer={cfg.tokenizer} has {len(tokenizer)} tokens: data.vocab={cfg.vocab} is less: raise it"
        )
    files = list(cfg.files) or None
    stream = datasets.load_dataset(cfg.dataset, cfg.subset, data_files=files, split="train", streaming=True)
    for row in stream.shuffle(seed=seed, buffer_size=cfg.shuffle):
        yield [*tokenizer(row[cfg.column]).input_ids, tokenizer.eos_token_id]


def packed(documents: Iterator[list[int]], width: int) -> Iterator[list[int]]:
    """Rows of ``width`` tokens cut from the concatenated documents. The rest at the end is dropped."""
    buffer: list[int] = []
    for document in documents:
        buffer += document
        whole = len(buffer) // width * width
        yield from (buffer[at : at + width] for at in range(0, whole, width))
        buffer = buffer[whole:]


def _write(out: Path, name: str, stream: Iterator[list[int]], rows: int, width: int) -> dict[str, Any]:
    """Write files of up to ``SHARD`` tokens, each under another name first."""
    from rich.progress import track

    out.mkdir(parents=True, exist_ok=True)
    each, written, files = max(1, SHARD // width), 0, []
    for first in track(range(0, rows, each), description=name):
        some = [row for _, row in zip(range(min(each, rows - first)), stream, strict=False)]
        if not some:
            break
        file = out / f"{name}-{first // each:05d}.npy"
        partial = file.with_name(f".{file.name}")
        np.save(partial, np.array(some, np.uint32))
        partial.rename(file)
        written += len(some)
        files.append(file.name)
    return {"rows": written, "rows_per_file": each, "files": files}


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of one stream, in files of ``each``."""

    folder: Path
    files: tuple[NDArray[np.uint32], ...]
    each: int

    @classmethod
    @lru_cache(maxsize=4)
    def open(cls, folder: str, stream: int, width: int) -> TokenRows:
        """Rows of a folder. ConfigError where `stepstack data` has not written them, or for rows of another length."""
        file = Path(folder) / "manifest.json"
        if not file.is_file():
            raise ConfigError(f"{file} does not exist: run `stepstack data` with this config first")
        manifest = jsonl.read_json(file)
        if manifest["width"] != width:
            raise ConfigError(f"{file}: rows have {manifest['width']} tokens, sequence + 1 is {width}: prepare again")
        facts = manifest["held_out" if stream == HELD_OUT else "train"]
        mapped = tuple(np.load(Path(folder) / name, mmap_mode="r") for name in facts["files"])
        return cls(Path(folder), mapped, facts["rows_per_file"])

    def take(self, first: int, count: int) -> NDArray[np.int64]:
        have = sum(map(len, self.files))
        if first + count > have:
            raise ConfigError(
                f"{self.folder} holds {have} rows, {first + count} are asked for: run `stepstack data` again"
            )
        parts = []
        for number in range(first // self.each, (first + count - 1) // self.each + 1):
            start = number * self.each
            parts.append(self.files[number][max(first - start, 0) : first + count - start])
        return np.concatenate(parts).astype(np.int64)
