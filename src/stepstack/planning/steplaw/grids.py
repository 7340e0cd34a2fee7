"""Tables of training runs, one row a run with N, D, learning rate, batch and final loss, grouped by (N, D)."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepstack.config import ConfigError

Values = NDArray[np.float64]
MAX_ERROR_ROWS = 5  # largest number of bad rows that an error names


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of a table's columns.

    ``batch`` counts sequences of ``sequence`` tokens (1: it counts tokens). ``model`` distinguishes models that share N
    and D ("": none do).
    """

    params: str = "N"
    tokens: str = "D"
    lr: str = "lr"
    batch: str = "bs"
    loss: str = "loss"
    model: str = ""
    sequence: int = 1

    @property
    def numbers(self) -> tuple[str, ...]:
        return self.params, self.tokens, self.lr, self.batch, self.loss

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.numbers, self.model) if self.model else self.numbers


@dataclass(frozen=True, slots=True)
class LossGrid:
    """Runs of one (``params``, ``tokens``): peak learning rates, batches in tokens and losses, all [runs].

    ``diverged`` counts runs whose loss is not finite. They are in no array.
    """

    params: float
    tokens: float
    lr: Values
    batch: Values
    loss: Values
    model: str = ""
    diverged: int = 0

    @property
    def name(self) -> str:
        return f"{self.model} N={self.params:.4g} D={self.tokens:.4g}".strip()

    @property
    def x(self) -> Values:
        """Coordinates (ln lr, ln batch) of the runs, [runs, 2]."""
        return np.log(np.stack([self.lr, self.batch], axis=1))

    @property
    def excess(self) -> Values:
        """Loss over the smallest one, minus 1, [runs]."""
        return self.loss / self.loss.min() - 1

    def within(self, tolerance: float) -> LossGrid:
        """Grid of only the runs whose excess is at most ``tolerance``."""
        keep = self.excess <= tolerance
        return replace(self, lr=self.lr[keep], batch=self.batch[keep], loss=self.loss[keep])


def rows(path: Path, names: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file. ConfigError for a file that lacks one of the columns, or has no row."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: give a CSV with a row a run")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        have = reader.fieldnames or []
        if lacking := [name for name in names if name not in have]:
            raise ConfigError(
                f"{path} has no column {', '.join(map(repr, lacking))}: it has {', '.join(have) or 'none'}. "
                "Add it, or rename one"
            )
        table = list(reader)
    if not table:
        raise ConfigError(f"{path} has a head and no rows: add a row a run")
    return table


def read(paths: Sequence[Path], columns: Columns) -> list[LossGrid]:
    """Grids of several tables together, by model, N and D. A loss of nan or inf, or none, is a run that diverged.

    One ConfigError names the bad rows: a value that is no number or not above 0, or a run that occurs twice.
    """
    bad: list[str] = []
    groups: dict[tuple[str, float, float], dict[tuple[float, float], float]] = {}
    for path in paths:
        for number, row in enumerate(rows(path, columns.names), 2):  # line 1 is the head
            values, why = _numbers(row, columns)
            if not why:
                n, d, lr, batch, loss = values
                runs = groups.setdefault((row[columns.model] if columns.model else "", n, d), {})
                why = (
                    f"the run {columns.lr}={lr:g}, {columns.batch}={batch:g} occurs twice"
                    if (lr, batch) in runs
                    else ""
                )
                runs[lr, batch] = loss
            if why:
                bad.append(f"{path}:{number}: {why}")
    if bad:
        more = f"\n... and {len(bad) - MAX_ERROR_ROWS} more" if len(bad) > MAX_ERROR_ROWS else ""
        raise ConfigError("\n".join(bad[:MAX_ERROR_ROWS]) + more + "\nRepair or remove these rows.")
    return [_grid(*key, runs, columns.sequence) for key, runs in sorted(groups.items())]


def _numbers(row: dict[str, str], columns: Columns) -> tuple[list[float], str]:
    values = []
    for name in columns.numbers:
        try:
            blank = name == columns.loss and row[name] is not None and not row[name].strip()  # as pandas writes nan
            value = math.nan if blank else float(row[name])
        except (TypeError, ValueError):
            return [], f"{name} = {row[name]!r} is no number"
        bounded = math.isfinite(value) or name == columns.loss
        if not bounded or value <= 0:
            return [], f"{name} = {row[name]} must be above 0" + ("" if bounded else " and finite")
        values.append(value)
    return values, ""


def _grid(model: str, params: float, tokens: float, runs: dict[tuple[float, float], float], sequence: int) -> LossGrid:
    whole = {key: loss for key, loss in runs.items() if math.isfinite(loss)}
    if not whole:
        raise ConfigError(f"every run of N={params:g}, D={tokens:g} diverged: add runs that did not")
    lr, batch = np.array(list(whole)).T
    losses = np.array(list(whole.values()))
    return LossGrid(params, tokens, lr, batch * sequence, losses, model, len(runs) - len(whole))
