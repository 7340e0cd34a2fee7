"""Pairs of answers to one prompt, from data to micro-batches. A pair is one unit: in partition, on processes and in
denominators."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stepstack.batching.collate import TokenMicroBatch, collate, collate_shared
from stepstack.batching.config import BatchLayout
from stepstack.batching.pack import partition
from stepstack.batching.rows import Row, owners
from stepstack.batching.shared import Siblings
from stepstack.core.run import Run
from stepstack.tuning.preference import PairScores


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows with the same prompt, one preferred to the other. ``reference`` holds the log-probability of each by the
    reference model, summed by the rows' weights, where it was computed before."""

    index: int
    chosen: Row
    rejected: Row
    reference: tuple[float, float] | None = None

    def __len__(self) -> int:
        """Tokens that the pair takes at most, padding counted."""
        return 2 * max(len(self.chosen), len(self.rejected))


@dataclass
class PairMicroBatch:
    """One forward over pairs: in ``tokens`` the winner's row of each pair, then the loser's."""

    pairs: list[Pair]
    tokens: TokenMicroBatch

    @property
    def blank(self) -> bool:
        return self.tokens.blank

    @property
    def count(self) -> int:
        return len(self.pairs)

    @property
    def work(self) -> int:
        """Tokens that go through the model."""
        return self.tokens.work

    def scores(self, logp_N: Tensor) -> PairScores:
        """Weighted log-probabilities of all learned tokens, summed row by row."""
        rows_R = torch.stack([part.sum() for part in (self.tokens.weight_N * logp_N).split(self.tokens.lengths)])
        tokens_R = torch.tensor([row.weight for row in self.tokens.rows], device=logp_N.device)
        return PairScores(*_winners_losers(rows_R), *_winners_losers(tokens_R))

    def reference(self) -> PairScores:
        """Scores of the pairs by the reference model. ValueError where they were not computed."""
        references = [pair.reference for pair in self.pairs]
        known = [pair for pair in references if pair is not None]
        if len(known) < len(references):
            raise ValueError("pairs without the reference's log-probabilities: compute them by batching.reference")
        chosen_B, rejected_B = torch.tensor(known, device=self.tokens.labels.device).unbind(1)
        tokens_R = torch.tensor([row.weight for row in self.tokens.rows], device=chosen_B.device)
        return PairScores(chosen_B, rejected_B, *_winners_losers(tokens_R))


def _winners_losers(of_rows_R: Tensor) -> tuple[Tensor, Tensor]:
    return of_rows_R[::2], of_rows_R[1::2]


@dataclass
class PairMinibatch:
    """The data of one optimizer step: this process's micro-batches, and over all processes the number of pairs and the
    sum of the loss weights of the winners' tokens."""

    micros: list[PairMicroBatch]
    pairs: float
    tokens: float


def pair_minibatch(run: Run, pairs: list[Pair], layout: BatchLayout) -> PairMinibatch:
    """This process's part of ``pairs``, which are the same on every process, balanced by length; a process with fewer
    micro-batches gets blank ones, because under FSDP every process must run as many forwards. ValueError for fewer
    pairs than processes."""
    if len(pairs) < run.processes:
        raise ValueError(
            f"{len(pairs)} pairs are too few for {run.processes} processes: raise the batch or start fewer"
        )
    owner = owners([len(pair) for pair in pairs], [0] * len(pairs), run.processes)
    local = [pair for pair, rank in zip(pairs, owner, strict=True) if rank == run.rank]
    parts = partition(local, layout)
    most = int(run.max(torch.tensor([float(len(parts))])))
    micros = [_collate(part, layout, run.device) for part in parts]
    micros += [_collate(local[:1], layout, run.device, blank=True) for _ in range(most - len(micros))]
    return PairMinibatch(micros, float(len(pairs)), sum(pair.chosen.weight for pair in pairs))


def _collate(pairs: list[Pair], layout: BatchLayout, device: torch.device, blank: bool = False) -> PairMicroBatch:
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    rows = [replace(row, index=place) for place, row in enumerate(rows)]
    if layout.share_prompts:
        both = [Siblings(two) for two in zip(rows[::2], rows[1::2], strict=True)]
        return PairMicroBatch(pairs, collate_shared(both, layout.pack, device, blank))
    return PairMicroBatch(pairs, collate(rows, layout.pack, device, blank))
