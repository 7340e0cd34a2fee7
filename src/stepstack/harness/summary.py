"""The outcome of evaluations in the terminal: a label of the model, a table, the folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from stepstack.config import ConfigError
from stepstack.harness.suite import Evaluated
from stepstack.terminal import console


def label_of(model: dict[str, Any]) -> str:
    """A folder name for a model: ``model-3fa9c1d2``."""
    stem = model["name"].rstrip("/").rpartition("/")[2]
    return f"{stem}-{model['sha256'][:8]}" if model["sha256"] else stem


def print_table(title: str, evaluated: Evaluated) -> None:
    """Task, metrics with standard errors, and what was lost on the way."""
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
