"""Mini-batches with their global denominators, the same number of micro-batches on every process."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from stepstack.batching.collate import TokenMicroBatch, collate
from stepstack.batching.config import BatchLayout
from stepstack.batching.pack import partition, plan
from stepstack.batching.rows import Batch, Row
from stepstack.core.run import Run


@dataclass
class Minibatch:
    """The data of one optimizer step: this process's micro-batches, and counts over all processes; ``tokens`` sums the
    loss weights of the learned tokens.

    ``spare``: rows that no update sees (orz-parity drops packs), to be annotated all the same.
    """

    micros: list[TokenMicroBatch]
    tokens: float
    rows: float
    packs: float
    spare: list[TokenMicroBatch] = field(default_factory=list)


def minibatches(run: Run, batch: Batch, updates: int, layout: BatchLayout) -> list[Minibatch]:
    """Cut a batch for ``updates`` optimizer steps. A process with fewer micro-batches gets blank ones, because under
    FSDP every process must run as many forwards."""
    if batch.size < run.processes:
        raise ValueError(f"{batch.size} rows are too few for {run.processes} processes: raise the batch or start fewer")
    parts = plan(batch, updates, layout)
    parts += [[] for _ in range(int(run.max(torch.tensor([float(len(parts))]))) - len(parts))]
    counts = torch.tensor([_counts(part) for part in parts], dtype=torch.float64)
    totals = run.sum(counts).tolist()
    most = run.max(counts[:, 2].clone()).long().tolist()
    result = [Minibatch(_micros(run, part, most[k], layout, batch), *totals[k]) for k, part in enumerate(parts)]
    used = {row.index for part in parts for micro in part for row in micro}
    spare = partition([row for row in batch.rows if row.index not in used], layout)
    result[-1].spare = _micros(run, spare, int(run.max(torch.tensor([float(len(spare))]))), layout, batch)
    return result


def _counts(part: list[list[Row]]) -> tuple[float, float, float]:
    rows = [row for micro in part for row in micro]
    return sum(row.weight for row in rows), float(len(rows)), float(len(part))


def _micros(run: Run, part: list[list[Row]], most: int, layout: BatchLayout, batch: Batch) -> list[TokenMicroBatch]:
    micros = [collate(rows, layout.pack, run.device) for rows in part]
    blanks = [collate(batch.rows[:1], layout.pack, run.device, blank=True) for _ in range(most - len(micros))]
    return micros + blanks
