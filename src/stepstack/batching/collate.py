"""Tensors of one forward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stepstack.batching.rows import Row
from stepstack.records import Picture


@dataclass
class TokenMicroBatch:
    """One forward: input_ids, position_ids [B, T]; select, labels [N] of the learned tokens (see
    models.Policy.forward), and their loss weights. ``mask`` [B, 1, T, T] says what sees what where that is not the
    usual, ``pictures`` are those of each sequence, and ``work`` counts the tokens that go through the model.

    ``blank`` marks a copy that only keeps processes in step and must weigh nothing.
    """

    rows: list[Row]
    input_ids: Tensor
    position_ids: Tensor
    select: Tensor
    labels: Tensor
    weight_N: Tensor
    blank: bool = False
    mask: Tensor | None = None
    pictures: list[tuple[Picture, ...]] = field(default_factory=list)
    work: int = 0

    @property
    def lengths(self) -> list[int]:
        """Learned tokens of each row."""
        return [len(row.learned) for row in self.rows]

    def inputs(self) -> dict[str, Any]:
        """Arguments of a policy's forward; pictures and mask where there are any."""
        arguments: dict[str, Any] = {"input_ids": self.input_ids, "position_ids": self.position_ids}
        if any(self.pictures):
            arguments["pictures"] = self.pictures
        if self.mask is not None:
            arguments["attention_mask"] = self.mask
        return arguments | {"select": self.select, "labels": self.labels}

    def has(self, name: str) -> bool:
        return name in self.rows[0].fields

    @property
    def count(self) -> int:
        """Learned tokens."""
        return len(self.labels)

    def field(self, name: str) -> Tensor:
        """A field of its rows as [N], on the device."""
        return torch.cat([row.fields[name] for row in self.rows]).to(self.input_ids.device)

    def store(self, name: str, flat_N: Tensor) -> None:
        """Cut [N] back into the rows; a blank leaves its row what the row's own micro-batch computed."""
        if self.blank:
            return
        for row, part in zip(self.rows, flat_N.detach().float().cpu().split(self.lengths), strict=True):
            row.fields[name] = part


def collate(rows: list[Row], pack: bool, device: torch.device | str, blank: bool = False) -> TokenMicroBatch:
    """Tensors of one forward. select[i] is the flat position of the token before labels[i]."""
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
    learned = [torch.tensor(row.learned) for row in rows]
    select = torch.cat([place + s + len(r.prompt_ids) - 1 for place, s, r in zip(learned, starts, rows, strict=True)])
    labels = torch.cat([torch.tensor(row.ids)[place] for row, place in zip(rows, learned, strict=True)])
    weight_N = torch.cat([weights_of(row)[place] for row, place in zip(rows, learned, strict=True)])
    return TokenMicroBatch(
        rows,
        input_ids.to(device),
        position_ids.to(device),
        select.to(device),
        labels.to(device),
        weight_N.to(device),
        blank,
        pictures=[row.pictures for row in rows],
        work=sum(map(len, rows)),
    )


def weights_of(row: Row) -> Tensor:
    """Loss weights of all tokens of a row."""
    return torch.ones(len(row.ids)) if row.weights is None else torch.tensor(row.weights)
