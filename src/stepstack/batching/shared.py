"""Answers to one prompt in one sequence, so that the prompt goes through the model once for all of them.

A sequence is a prompt and its answers, one behind the other. The positions of each answer go on from the prompt, and
the attention mask hides the other answers from it. Log-probabilities, values and gradients are those of rows of their
own, but for rounding; the work is less by the prompts that are not repeated, and more by the scores of attention that
the mask throws away. It pays where prompts are long beside the answers. (Prefix Grouper, arXiv 2506.05433, splits the
attention instead.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepstack.batching.rows import Row
from stepstack.records import Picture

PROMPT, PADDING = 0, -1  # parts of a sequence; answers count from 1


@dataclass(frozen=True, slots=True)
class Siblings:
    """Rows of one prompt that form one sequence. A row that shares nothing is alone. ValueError for several prompts."""

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        first = self.rows[0]
        for row in self.rows[1:]:
            if (row.prompt_ids, row.pictures) != (first.prompt_ids, first.pictures):
                raise ValueError(
                    f"rows {first.index} and {row.index} have two prompts and cannot share one: set "
                    "layout.share_prompts=false"
                )

    @property
    def index(self) -> int:
        return self.rows[0].index

    def __len__(self) -> int:
        return len(self.rows[0].prompt_ids) + sum(len(row.ids) for row in self.rows)

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens of the prompt and of all answers."""
        return self.rows[0].prompt_ids + tuple(token for row in self.rows for token in row.ids)

    @property
    def counts(self) -> list[int]:
        """Tokens of the prompt and of each answer."""
        return [len(self.rows[0].prompt_ids), *(len(row.ids) for row in self.rows)]

    @property
    def positions(self) -> Tensor:
        """Position of each token [T]."""
        prompt, *answers = self.counts
        return torch.cat([torch.arange(prompt), *(torch.arange(prompt, prompt + count) for count in answers)])

    @property
    def parts(self) -> Tensor:
        """Part of the sequence that each token belongs to [T]."""
        return torch.repeat_interleave(torch.arange(len(self.rows) + 1), torch.tensor(self.counts))


def siblings(rows: Sequence[Row], max_tokens: int) -> list[Siblings]:
    """Rows by their prompt, in sequences of at most ``max_tokens``, but for a row that is longer by itself."""
    by_prompt: dict[tuple[tuple[int, ...], tuple[Picture, ...]], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.index):
        by_prompt[row.prompt_ids, row.pictures].append(row)
    found = []
    for group in by_prompt.values():
        together: list[Row] = []
        for row in group:
            if together and len(together[0]) + sum(len(other.ids) for other in (*together[1:], row)) > max_tokens:
                found.append(Siblings(tuple(together)))
                together = []
            together.append(row)
        found.append(Siblings(tuple(together)))
    return found


def visible(part_BT: Tensor, sequence_BT: Tensor) -> Tensor:
    """Whether a token (row of the matrix) sees another [B, 1, T, T]: earlier ones of its sequence, in the prompt or in
    its own answer; padding sees itself, because a row that sees nothing is NaN."""
    earlier = torch.ones(part_BT.shape[1], part_BT.shape[1], dtype=torch.bool, device=part_BT.device).tril()
    same_sequence = sequence_BT[:, :, None] == sequence_BT[:, None]
    in_reach = (part_BT[:, None] == PROMPT) | (part_BT[:, :, None] == part_BT[:, None])
    return (earlier & same_sequence & in_reach)[:, None]
