"""Mini-batches with their global denominators, the same number of micro-batches on every process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from stepstack.batching.collate import TokenMicroBatch, collate, collate_shared
from stepstack.batching.config import BatchLayout
from stepstack.batching.pack import plan, sequences
from stepstack.batching.rows import Batch, Row
from stepstack.batching.shared import Siblings
from stepstack.core.run import Run


@dataclass
class Minibatch:
    """The data of one optimizer step: this process's micro-batches, and counts over all processes; ``tokens`` sums the
    loss weights of the learned tokens. ``tokens``, ``rows`` and ``packs``, by which a loss is divided, count all rows
    of the mini-batch, ``learned`` those that are in micro-batches.

    ``spare``: rows that no update sees (orz-parity drops packs), to be annotated all the same.
    """

    micros: list[TokenMicroBatch]
    tokens: float
    rows: float
    packs: float
    learned: float
    spare: list[TokenMicroBatch] = field(default_factory=list)


def minibatches(
    run: Run, batch: Batch, updates: int, layout: BatchLayout, learns: Callable[[Row], bool] | None = None
) -> list[Minibatch]:
    """Cut a batch for ``updates`` optimizer steps. A process with fewer micro-batches gets blank ones, because under
    FSDP every process must run as many forwards.

    Rows for which ``learns`` is False count in the denominators and go through no model; None: all rows learn. A
    mini-batch of which no process has a row left is a blank micro-batch on each, whose gradient is 0, not none.
    """
    if batch.size < run.processes:
        raise ValueError(f"{batch.size} rows are too few for {run.processes} processes: raise the batch or start fewer")
    parts = plan(batch, updates, layout)
    parts += [[] for _ in range(int(run.max(torch.tensor([float(len(parts))]))) - len(parts))]
    used = {row.index for part in parts for row in _rows_of(part)}
    learned = parts
    if learns is not None:
        learned = [sequences([row for row in _rows_of(part) if learns(row)], layout) for part in parts]
    counts = [(*_counts(part), _counts(left)[1]) for part, left in zip(parts, learned, strict=True)]
    totals = run.sum(torch.tensor(counts, dtype=torch.float64)).tolist()
    most = run.max(torch.tensor([float(len(part)) for part in learned])).clamp(min=1).long().tolist()
    result = [Minibatch(_micros(run, part, most[k], layout, batch), *totals[k]) for k, part in enumerate(learned)]
    spare = sequences([row for row in batch.rows if row.index not in used], layout)
    result[-1].spare = _micros(run, spare, int(run.max(torch.tensor([float(len(spare))]))), layout, batch)
    return result


def _rows_of(part: list[list[Siblings]]) -> list[Row]:
    """All rows of some micro-batches."""
    return [row for micro in part for sequence in micro for row in sequence.rows]


def _counts(part: list[list[Siblings]]) -> tuple[float, float, float]:
    rows = _rows_of(part)
    return sum(row.weight for row in rows), float(len(rows)), float(len(part))


def _micros(
    run: Run, part: list[list[Siblings]], most: int, layout: BatchLayout, batch: Batch
) -> list[TokenMicroBatch]:
    micros = [collate_shared(micro, layout.pack, run.device) for micro in part]
    blanks = [collate(batch.rows[:1], layout.pack, run.device, blank=True) for _ in range(most - len(micros))]
    return micros + blanks
