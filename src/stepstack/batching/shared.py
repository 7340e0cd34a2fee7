"""Pairs whose prompt goes through the model once, for both answers.

A pair is one sequence: prompt, winner, loser. The loser's positions go on from the prompt, and the attention mask hides
the winner from it. With long prompts that is half the work; log-probabilities are those of two rows, but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepstack.batching.collate import TokenMicroBatch, weights_of
from stepstack.batching.rows import Row

PROMPT, CHOSEN, REJECTED, PADDING = 0, 1, 2, 3  # parts of a sequence


def collate_shared(
    winners: Sequence[Row], losers: Sequence[Row], pack: bool, device: torch.device | str, blank: bool = False
) -> TokenMicroBatch:
    """Tensors of one forward. ValueError for a pair whose answers have different prompts."""
    both = list(zip(winners, losers, strict=True))
    for place, (winner, loser) in enumerate(both):
        if (winner.prompt_ids, winner.pictures) != (loser.prompt_ids, loser.pictures):
            raise ValueError(f"pair {place} of a micro-batch has two prompts: set layout.share_prompts=false")
    sequences = [torch.tensor((*a.prompt_ids, *a.ids, *b.ids)) for a, b in both]
    lengths = [len(sequence) for sequence in sequences]
    positions = [_positions(a, b) for a, b in both]
    parts = [_parts(a, b) for a, b in both]
    if pack:
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).tolist()
        input_BT, position_BT, part_BT = (torch.cat(x)[None] for x in (sequences, positions, parts))
        pair_BT = torch.repeat_interleave(torch.arange(len(both)), torch.tensor(lengths))[None]
    else:
        width = max(lengths)
        starts = [place * width for place in range(len(both))]
        input_BT = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        position_BT = torch.nn.utils.rnn.pad_sequence(positions, batch_first=True, padding_value=1)
        part_BT = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PADDING)
        pair_BT = torch.zeros_like(part_BT)
    rows = [*winners, *losers]
    first = [0] * len(winners) + [len(row.ids) for row in winners]  # where an answer begins, behind its prompt
    learned = [torch.tensor(row.learned) for row in rows]
    select = []
    for row, places, skipped, start in zip(rows, learned, first, starts * 2, strict=True):
        before = places - 1 + skipped  # the token before each learned one, which for the first is the prompt's last
        select.append(start + len(row.prompt_ids) + torch.where(places == 0, -1, before))
    labels = torch.cat([torch.tensor(row.ids)[places] for row, places in zip(rows, learned, strict=True)])
    weight_N = torch.cat([weights_of(row)[places] for row, places in zip(rows, learned, strict=True)])
    return TokenMicroBatch(
        rows,
        input_BT.to(device),
        position_BT.to(device),
        torch.cat(select).to(device),
        labels.to(device),
        weight_N.to(device),
        blank,
        mask=_mask(part_BT.to(device), pair_BT.to(device)),
        pictures=[row.pictures for row in winners],
        work=sum(lengths),
    )


def _positions(winner: Row, loser: Row) -> Tensor:
    prompt = len(winner.prompt_ids)
    return torch.cat([torch.arange(prompt + len(winner.ids)), torch.arange(prompt, prompt + len(loser.ids))])


def _parts(winner: Row, loser: Row) -> Tensor:
    counts = torch.tensor([len(winner.prompt_ids), len(winner.ids), len(loser.ids)])
    return torch.repeat_interleave(torch.tensor([PROMPT, CHOSEN, REJECTED]), counts)


def _mask(part_BT: Tensor, pair_BT: Tensor) -> Tensor:
    """Whether a token (row of the matrix) sees another [B, 1, T, T]: earlier ones of its pair, in the prompt or in its
    own answer; padding sees itself, because a row that sees nothing is NaN."""
    earlier = torch.ones(part_BT.shape[1], part_BT.shape[1], dtype=torch.bool, device=part_BT.device).tril()
    same_pair = pair_BT[:, :, None] == pair_BT[:, None]
    visible = (part_BT[:, None] == PROMPT) | (part_BT[:, :, None] == part_BT[:, None])
    return (earlier & same_pair & visible)[:, None]
