"""Tensors of one forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from stepstack.batching.rows import Row, field_of
from stepstack.batching.shared import PADDING, Siblings, visible
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
        return field_of(self.rows, name).to(self.input_ids.device)

    def store(self, name: str, flat_N: Tensor) -> None:
        """Cut [N] back into the rows; a blank leaves its row what the row's own micro-batch computed."""
        if self.blank:
            return
        for row, part in zip(self.rows, flat_N.detach().float().cpu().split(self.lengths), strict=True):
            row.fields[name] = part


def collate(rows: Sequence[Row], pack: bool, device: torch.device | str, blank: bool = False) -> TokenMicroBatch:
    """Tensors of one forward, in which each row is a sequence of its own."""
    return collate_shared([Siblings((row,)) for row in rows], pack, device, blank)


def collate_shared(
    sequences: Sequence[Siblings], pack: bool, device: torch.device | str, blank: bool = False
) -> TokenMicroBatch:
    """Tensors of one forward. select[i] is the flat position of the token before labels[i], which for the first token
    of an answer is the last one of its prompt."""
    lengths = [len(sequence) for sequence in sequences]
    widths = lengths if pack else [max(lengths)] * len(lengths)
    starts = list(accumulate(widths[:-1], initial=0))
    input_ids = _joined([torch.tensor(sequence.ids) for sequence in sequences], pack)
    shared, mask = any(len(sequence.rows) > 1 for sequence in sequences), None
    if shared:
        numbers = [torch.full((length,), number) for number, length in enumerate(lengths)]
        parts = _joined([sequence.parts for sequence in sequences], pack, PADDING)
        mask = visible(parts.to(device), _joined(numbers, pack).to(device))
    if pack or shared:
        position_ids = _joined([sequence.positions for sequence in sequences], pack, 1)
    else:
        position_ids = torch.arange(widths[0]).expand_as(input_ids)  # a restart in padding would mean packed rows
    rows = [row for sequence in sequences for row in sequence.rows]
    learned = [torch.tensor(row.learned) for row in rows]
    labels = torch.cat([torch.tensor(row.ids)[places] for row, places in zip(rows, learned, strict=True)])
    weight_N = torch.cat([weights_of(row)[places] for row, places in zip(rows, learned, strict=True)])
    return TokenMicroBatch(
        rows,
        input_ids.to(device),
        position_ids.to(device),
        torch.cat(list(_before(sequences, starts, learned))).to(device),
        labels.to(device),
        weight_N.to(device),
        blank,
        mask,
        pictures=[sequence.rows[0].pictures for sequence in sequences],
        work=sum(lengths),
    )


def _joined(tensors: Sequence[Tensor], pack: bool, padding: int = 0) -> Tensor:
    """Tensors [T] packed into one row, or padded to the longest."""
    if pack:
        return torch.cat(list(tensors))[None]
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=padding)


def _before(sequences: Sequence[Siblings], starts: Sequence[int], learned: Sequence[Tensor]) -> Iterator[Tensor]:
    """Flat positions of the tokens before the learned ones of each row."""
    places_of = iter(learned)
    for sequence, start in zip(sequences, starts, strict=True):
        prompt, *answers = sequence.counts
        for begins, places in zip(accumulate(answers[:-1], initial=0), places_of, strict=False):
            yield start + prompt - 1 + torch.where(places == 0, 0, begins + places)


def weights_of(row: Row) -> Tensor:
    """Loss weights of all tokens of a row."""
    return torch.ones(len(row.ids)) if row.weights is None else torch.tensor(row.weights)
