"""From rollouts to micro-batches. Rows stay on the CPU; a micro-batch is built on the device when it is used.

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
from typing import Any

import torch
from torch import Tensor

from stepstack.config import Strict
from stepstack.rl.types import Picture, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout(Strict):
    """How rows become micro-batches of at most ``max_tokens`` tokens, padding counted.

    ``orz_parity``: packs filled in arrival order and trailing packs dropped, as ORZ's code does.
    """

    pack: bool = False
    max_tokens: int = 8192
    orz_parity: bool = False


@dataclass
class Row:
    """One rollout as the trainer needs it. ``fields`` are per-response-token tensors [len(ids)]; ``index`` is its
    place in the whole batch, the same on every process; ``group`` its problem's index, ``sample`` its place there."""

    index: int
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    reward: float = 0.0
    group: int = 0
    sample: int = 0
    fields: dict[str, Tensor] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()

    @classmethod
    def of(cls, rollout: Rollout, reward: float, index: int) -> Row:
        fields = {"sampler": torch.tensor(rollout.logprobs)}
        group = rollout.prompt.problem.index
        prompt = rollout.prompt
        return cls(index, prompt.ids, rollout.ids, reward, group, rollout.sample, fields, prompt.pictures)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.ids)


@dataclass
class Micro:
    """One forward: input_ids, position_ids [B, T]; select, labels [N] (see models.Policy.forward).

    ``blank`` marks a copy that only keeps processes in step and must weigh nothing.
    """

    rows: list[Row]
    input_ids: Tensor
    position_ids: Tensor
    select: Tensor
    labels: Tensor
    blank: bool = False

    @property
    def lengths(self) -> list[int]:
        return [len(row.ids) for row in self.rows]

    def inputs(self) -> dict[str, Any]:
        """What a policy's forward takes; pictures row by row where there are any."""
        given: dict[str, Any] = {"input_ids": self.input_ids, "position_ids": self.position_ids}
        if any(row.pictures for row in self.rows):
            given["pictures"] = [row.pictures for row in self.rows]
        return given | {"select": self.select, "labels": self.labels}

    def has(self, name: str) -> bool:
        return name in self.rows[0].fields

    def counts(self) -> dict[str, Tensor]:
        """Response tokens, and tokens that went through the model (for FLOPs)."""
        return {"tokens": torch.tensor(float(len(self.labels))), "seen": torch.tensor(float(sum(map(len, self.rows))))}

    def field(self, name: str) -> Tensor:
        """A per-token field of its rows as [N], on the device."""
        return torch.cat([row.fields[name] for row in self.rows]).to(self.input_ids.device)

    def store(self, name: str, flat_N: Tensor) -> None:
        """Cut [N] back into the rows; a blank leaves its row what the row's own micro-batch computed."""
        if self.blank:
            return
        for row, part in zip(self.rows, flat_N.detach().float().cpu().split(self.lengths), strict=True):
            row.fields[name] = part


@dataclass
class Batch:
    """This process's rows of a step. ``size`` and ``scores`` (by problem index) speak of the whole batch."""

    rows: list[Row]
    size: int
    seed: int
    scores: dict[int, list[float]] = field(default_factory=dict)

    def minibatches(self, count: int) -> list[list[Row]]:
        """This process's part of each of ``count`` mini-batches: a seeded permutation of the whole batch, cut in parts
        whose sizes differ by at most one, so that no row is dropped (ORZ drops up to count - 1 packs)."""
        if count > self.size:
            raise ValueError(f"{count} updates need at least as many rollouts; the batch has {self.size}")
        part_of = chunk_of(self.size, count, self.seed)
        parts: list[list[Row]] = [[] for _ in range(count)]
        for row in self.rows:
            parts[part_of[row.index]].append(row)
        return parts

    def field(self, name: str) -> Tensor:
        return torch.cat([row.fields[name] for row in self.rows]) if self.rows else torch.empty(0)

    @property
    def lengths(self) -> list[int]:
        return [len(row.ids) for row in self.rows]

    def store(self, name: str, flat_N: Tensor) -> None:
        for row, part in zip(self.rows, flat_N.split(self.lengths), strict=True):
            row.fields[name] = part


def chunk_of(size: int, count: int, seed: int) -> list[int]:
    """Which of ``count`` chunks each of ``size`` rows falls in: a seeded permutation cut evenly."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    part = [0] * size
    for place, index in enumerate(order):
        part[index] = place * count // size
    return part


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


def plan(batch: Batch, updates: int, layout: Layout) -> list[list[list[Row]]]:
    """This process's rows as mini-batches of micro-batches. The same arguments give the same plan, so what is
    annotated before an update is computed in the very micro-batches of the update."""
    if not layout.orz_parity:
        return [partition(rows, layout) for rows in batch.minibatches(updates)]
    [rows] = batch.minibatches(1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(42)).tolist()
    packs = partition([rows[i] for i in order], layout)
    each = max(1, len(packs) // updates)
    return [packs[k * each : (k + 1) * each] for k in range(min(updates, len(packs) // each))]


def partition(rows: Sequence[Row], layout: Layout) -> list[list[Row]]:
    """Rows of one mini-batch grouped for forwards. Packed: first-fit decreasing. Padded: neighbours in length."""
    for row in rows:
        if len(row) > layout.max_tokens:
            raise ValueError(
                f"a rollout of {len(row)} tokens does not fit layout.max_tokens={layout.max_tokens}: "
                "raise it, or lower rollout.sampling.max_tokens"
            )
    ordered = list(rows) if layout.orz_parity else sorted(rows, key=lambda row: (-len(row), row.index))
    if not layout.pack:
        return _neighbours(ordered, layout.max_tokens)
    packs: list[list[Row]] = []
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


def _neighbours(ordered: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    groups: list[list[Row]] = []
    for row in ordered:
        if groups and len(groups[-1][0]) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def collate(rows: list[Row], pack: bool, device: torch.device | str, blank: bool = False) -> Micro:
    """Tensors of one forward. select[i] is the flat position of the token before labels[i]."""
    if pack and any(row.pictures for row in rows):
        raise ValueError("rows with pictures are not packed: set layout.pack=false")
    sequences = [torch.tensor(row.prompt_ids + row.ids) for row in rows]
    if pack:
        starts = [0]
        for sequence in sequences[:-1]:
            starts.append(starts[-1] + len(sequence))
        input_ids = torch.cat(sequences)[None]
        position_ids = torch.cat([torch.arange(len(s)) for s in sequences])[None]
    else:
        width = max(len(s) for s in sequences)
        starts = [i * width for i in range(len(rows))]
        input_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        position_ids = torch.arange(width).expand(len(rows), width)
    select = torch.cat(
        [torch.arange(s + len(r.prompt_ids) - 1, s + len(r) - 1) for s, r in zip(starts, rows, strict=True)]
    )
    labels = torch.cat([torch.tensor(row.ids) for row in rows])
    input_ids, position_ids, select, labels = (x.to(device) for x in (input_ids, position_ids, select, labels))
    return Micro(rows, input_ids, position_ids, select, labels, blank)
