"""Which rows go into one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch

from stepstack.batching.config import BatchLayout
from stepstack.batching.rows import Batch, Row
from stepstack.batching.shared import Siblings, siblings


class Sized(Protocol):
    """A row, or rows that stay together."""

    @property
    def index(self) -> int: ...

    def __len__(self) -> int: ...


T = TypeVar("T", bound=Sized)


def plan(batch: Batch, updates: int, layout: BatchLayout) -> list[list[list[Siblings]]]:
    """This process's rows as mini-batches of micro-batches of sequences. The same arguments give the same plan, so what
    is annotated before an update is computed in the very micro-batches of the update."""
    if not layout.orz_parity:
        return [sequences(rows, layout) for rows in batch.minibatches(updates)]
    [rows] = batch.minibatches(1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(42)).tolist()
    packs = sequences([rows[i] for i in order], layout)
    each = max(1, len(packs) // updates)
    return [packs[k * each : (k + 1) * each] for k in range(min(updates, len(packs) // each))]


def sequences(rows: Sequence[Row], layout: BatchLayout) -> list[list[Siblings]]:
    """Rows of one mini-batch grouped for forwards, each a sequence of its own, or with its siblings where ``layout``
    shares prompts."""
    if layout.share_prompts:
        _refuse_long(rows, layout)
        return partition(siblings(rows, layout.max_tokens), layout)
    return [[Siblings((row,)) for row in part] for part in partition(rows, layout)]


def partition(rows: Sequence[T], layout: BatchLayout) -> list[list[T]]:
    """Rows of one mini-batch grouped for forwards. Packed: first-fit decreasing. Padded: neighbours in length."""
    _refuse_long(rows, layout)
    ordered = list(rows) if layout.orz_parity else sorted(rows, key=lambda row: (-len(row), row.index))
    if not layout.pack:
        return _neighbours(ordered, layout.max_tokens)
    packs: list[list[T]] = []
    room: list[int] = []
    for row in ordered:
        open_packs = range(len(packs) - 1, len(packs)) if layout.orz_parity else range(len(packs))
        place = next((i for i in open_packs if i >= 0 and len(row) <= room[i]), None)
        if place is None:
            packs.append([row])
            room.append(layout.max_tokens - len(row))
        else:
            packs[place].append(row)
            room[place] -= len(row)
    return packs


def _refuse_long(rows: Sequence[Sized], layout: BatchLayout) -> None:
    for row in rows:
        if len(row) > layout.max_tokens:
            raise ValueError(
                f"{type(row).__name__.lower()} {row.index} of {len(row)} tokens does not fit layout.max_tokens="
                f"{layout.max_tokens}: raise it, or shorten rows (of rollouts: rollout.sampling.max_tokens)"
            )


def _neighbours(ordered: Sequence[T], max_tokens: int) -> list[list[T]]:
    groups: list[list[T]] = []
    for row in ordered:
        if groups and len(groups[-1][0]) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
