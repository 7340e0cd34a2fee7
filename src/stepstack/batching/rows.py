"""Rows of a batch, from rollouts to micro-batches. Rows stay on the CPU; a micro-batch is built on the device when it
is used.

Three levels, in the field's words: a *batch* is one step's rollouts over all processes; a *mini-batch* is what one
optimizer step sees, over all processes; a *micro-batch* is one forward on one process. Which rows form a mini-batch
depends on the seed alone, never on the number of processes.

Why no attention mask is needed: padded rows are padded on the right, and causal attention never looks right; packed
rows restart position_ids at 0, from which transformers infers a block-diagonal mask, provided that attention_mask is
None and use_cache is False.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stepstack.generation.types import Rollout
from stepstack.records import Picture


@dataclass
class Row:
    """One sequence as the trainer needs it, such as a rollout. ``index`` is its place in the whole batch, the same on
    every process; ``group`` its problem's index, ``sample`` its place there. ``weights`` are the loss weights of the
    tokens in ``ids``, None for 1 each; a token of weight 0 is read and not learned. ``fields`` are tensors [N] with a
    number for each learned token."""

    index: int
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    reward: float = 0.0
    group: int = 0
    sample: int = 0
    fields: dict[str, Tensor] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    weights: tuple[float, ...] | None = None

    @classmethod
    def of(cls, rollout: Rollout, reward: float, index: int) -> Row:
        group, prompt, weights = rollout.problem.index, rollout.prompt, rollout.weights
        row = cls(index, prompt.ids, rollout.ids, reward, group, rollout.sample, {}, prompt.pictures, weights)
        row.fields["sampler"] = torch.tensor(rollout.logprobs)[list(row.learned)]
        return row

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.ids)

    @property
    def learned(self) -> Sequence[int]:
        """Places in ``ids`` of the tokens that are learned."""
        if self.weights is None:
            return range(len(self.ids))
        return [place for place, weight in enumerate(self.weights) if weight]

    @property
    def weight(self) -> float:
        """Sum of the loss weights, which counts in denominators."""
        return float(len(self.ids) if self.weights is None else sum(self.weights))


@dataclass
class Batch:
    """This process's rows of a step. The rest is of the whole batch: ``size``, ``scores`` of each group by problem
    index, ``sampled``, the rollouts that were sampled for it, and ``baselines``, scores of greedy responses by problem
    index where there are any."""

    rows: list[Row]
    size: int
    seed: int
    scores: dict[int, list[float]] = field(default_factory=dict)
    sampled: int = 0
    baselines: dict[int, float] = field(default_factory=dict)

    def minibatches(self, count: int) -> list[list[Row]]:
        """This process's part of each of ``count`` mini-batches: a seeded permutation of the whole batch, cut in parts
        whose sizes differ by at most one, so that no row is dropped (ORZ drops up to count - 1 packs)."""
        if count > self.size:
            raise ValueError(
                f"{count} updates need at least as many rollouts; the batch has {self.size}: ask for fewer "
                "updates a step"
            )
        part_of = chunk_of(self.size, count, self.seed)
        parts: list[list[Row]] = [[] for _ in range(count)]
        for row in self.rows:
            parts[part_of[row.index]].append(row)
        return parts

    def field(self, name: str) -> Tensor:
        return field_of(self.rows, name)

    @property
    def lengths(self) -> list[int]:
        """Learned tokens of each row."""
        return [len(row.learned) for row in self.rows]

    def store(self, name: str, flat_N: Tensor) -> None:
        for row, part in zip(self.rows, flat_N.split(self.lengths), strict=True):
            row.fields[name] = part


def field_of(rows: Sequence[Row], name: str) -> Tensor:
    """A field of all rows as [N]."""
    return torch.cat([row.fields[name] for row in rows]) if rows else torch.empty(0)


def chunk_of(size: int, count: int, seed: int) -> list[int]:
    """Which of ``count`` chunks each of ``size`` rows falls in: a seeded permutation cut evenly."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    part = [0] * size
    for place, index in enumerate(order):
        part[index] = place * count // size
    return part


def share_of(rows: Sequence[Row], process: int, processes: int) -> list[Row]:
    """The rows of a batch that a process trains, balanced by length."""
    owner = owners([len(row) for row in rows], [0] * len(rows), processes)
    return [row for row, at in zip(rows, owner, strict=True) if at == process]


def owners(lengths: Sequence[int], chunks: Sequence[int], processes: int) -> list[int]:
    """The process of each row: longest first onto the least loaded one, chunk by chunk, so that every process has
    about the same tokens in each chunk (and so nearly the same in unions of chunks)."""
    owner = [0] * len(lengths)
    total = [0] * processes
    for chunk in range(max(chunks, default=-1) + 1):
        members = sorted((i for i in range(len(lengths)) if chunks[i] == chunk), key=lambda i: (-lengths[i], i))
        loads = [(0, total[p], p) for p in range(processes)]
        heapq.heapify(loads)
        for i in members:
            load, overall, process = heapq.heappop(loads)
            owner[i] = process
            total[process] += lengths[i]
            heapq.heappush(loads, (load + lengths[i], overall + lengths[i], process))
    return owner
