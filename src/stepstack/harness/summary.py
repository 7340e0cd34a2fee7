"""The outcome of evaluations in the terminal: a label of the model, a table, the folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from stepstack.config import ConfigError
from stepstack.harness.answers import read
from stepstack.harness.evaluate import commonest
from stepstack.harness.store import SAMPLES, digest, model_key
from stepstack.harness.suite import Evaluated
from stepstack.terminal import console

LONGEST_STEM = 100  # characters of a model's name in a folder's


def label_of(model: dict[str, Any]) -> str:
    """A folder name for a model: ``model-3fa9c1d2``. Letters and digits of ASCII and ``._+=@-`` stay, so that no name
    leaves the folder, and what follows the dash tells models of one name apart."""
    stem = re.sub(r"[^A-Za-z0-9._+=@-]+", "_", model["name"].rstrip("/").rpartition("/")[2]).lstrip(".")
    return f"{stem[:LONGEST_STEM] or 'model'}-{(model['sha256'] or digest(model_key(model)))[:8]}"


def print_table(title: str, evaluated: Evaluated, began: datetime) -> None:
    """Task, metrics with standard errors, and what was lost on the way; below it, results that are older than
    ``began``, the command's start, and the commonest failure."""
    table = Table(title=title)
    for column in ("task", "metric", "value", "n", "truncated", "failed", "tokens"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right", overflow="fold")
    for _, result in evaluated:
        for place, metric in enumerate(result["metrics"]):
            first = place == 0
            failed = sum(result["failed"].values())
            table.add_row(
                f"{result['task']} v{result['version']}" if first else "",
                metric["name"] + ("" if metric["higher_is_better"] else " (less is better)"),
                with_error(metric["value"], metric["stderr"]),
                str(metric["n"]),
                f"{result['truncated']}/{result['samples']}" if first else "",
                f"{failed}/{result['samples']}" if first else "",
                f"{result['length']:.1f}" if first and result["length"] is not None else "",
            )
    out = console()
    if not out.is_terminal:  # a file or a pipe, which rich takes for 80 columns wide
        out.width = 120
    out.print(table)
    for line in [line for folder, result in evaluated for line in _remarks(folder, result, began)]:
        out.print(line, soft_wrap=True)


def _remarks(folder: Path, result: dict[str, Any], began: datetime) -> Iterator[str]:
    """Lines for what a figure does not show: its age, the settings that it did without, why samples failed."""
    task, made = f"{result['task']} v{result['version']}", datetime.fromisoformat(result["provenance"]["time"])
    if made < began.replace(microsecond=0):
        yield f"{task} is from {made.astimezone():%d %b %Y %H:%M}, not asked again; --again asks anew"
    if left_out := result.get("left_out"):
        yield f"{task} was sampled without settings that the server does not take: {', '.join(left_out)}"
    if failed := sum(result["failed"].values()):
        kinds = tuple(f"{kind}: " for kind, count in result["failed"].items() if count)
        samples = [s for s in read(folder / SAMPLES) if s.failure is not None and s.failure.startswith(kinds)]
        if samples:  # a group of lm-eval's has none of its own
            yield f"{task}: {failed} of {result['samples']} samples failed, most of them with {commonest(samples)}"


def with_error(value: float | None, stderr: float | None) -> str:
    """A value ± its standard error, where that is known."""
    return figure(value) if stderr is None else f"{figure(value)} ± {figure(stderr)}"


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def places_of(names: Sequence[str]) -> dict[str, list[Path]]:
    """Label -> evaluation folders, of folders that hold some (runs/<name>/evals/<label>) or are one.

    ConfigError for a folder without a finished evaluation.
    """
    by_label: dict[str, list[Path]] = {}
    for name in names:
        folder = Path(name)
        whole = (folder / "result.json").is_file()
        places = [folder] if whole else sorted(file.parent for file in folder.glob("*/result.json"))
        if not places:
            raise ConfigError(f"{name} holds no finished evaluation (no result.json): give runs/<name>/evals/<label>")
        label = folder.name if folder.name not in by_label else str(folder)
        by_label[label] = places
    return by_label
