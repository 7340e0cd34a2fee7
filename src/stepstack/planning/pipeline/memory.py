"""Bytes of a rank while a plan is made: the banker's rule, which keeps a cap and never gets stuck. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stepstack.planning.pipeline.graph import PlanError

DONE = math.inf  # slack of a microbatch that has ended on a rank: it limits nobody


class Held(NamedTuple):
    """A part through a chunk as its rank's memory sees it: the rank, the microbatch, and whole bytes ``saved`` from F
    to the end of its backward pass and ``kept`` from I to W."""

    rank: int
    microbatch: int
    saved: int
    kept: int


@dataclass(slots=True)
class Bank:
    """Admission of passes under a cap (Dijkstra's banker's rule), with an order of the microbatches.

    A rank admits a forward pass of microbatch i only if each unfinished microbatch k that stands at or before i could
    still end there: what k and all later ones hold, what is asked for, and what k has not yet asked for stay within the
    cap. So the first unfinished microbatch can always end on every rank, hence all can. ``slack[rank][place]`` is the
    cap less what microbatch at ``place`` and later ones hold and it still needs. Weight gradients that wait hold bytes,
    but can be carried out at any time: they never block a microbatch, only a pass for the moment.

    ``used`` and ``waiting``: bytes of each rank, and those of them that weight gradients hold.
    """

    cap: int
    stages: Sequence[Held]
    place: Sequence[int]  # of each microbatch in the order
    slack: list[list[float]]
    left: list[list[int]]  # backward passes by rank and place that have not been carried out
    used: list[int]
    waiting: list[int]

    @classmethod
    def open(cls, cap: float, stages: Sequence[Held], place: Sequence[int], ranks: int) -> Bank:
        """A bank of which nothing has been asked. PlanError where a microbatch alone needs more than the cap."""
        need = needs(stages, ranks, len(place))
        for rank, rows in enumerate(need):
            microbatch = max(range(len(rows)), key=rows.__getitem__)
            if rows[microbatch] > cap:
                raise PlanError(
                    f"rank {rank} needs {rows[microbatch]} bytes for microbatch {microbatch} alone, the cap is "
                    f"{math.floor(cap)}: raise the cap, or make the microbatch smaller"
                )
        slack, left = [[DONE] * len(place) for _ in range(ranks)], [[0] * len(place) for _ in range(ranks)]
        for rank, microbatch, _, _ in stages:
            left[rank][place[microbatch]] += 1
            slack[rank][place[microbatch]] = math.floor(cap) - need[rank][microbatch]
        return cls(math.floor(cap), stages, place, slack, left, [0] * ranks, [0] * ranks)

    def admits_forward(self, stage: int) -> bool:
        """Whether all could still end after this forward pass."""
        rank, microbatch, saved, _ = self.stages[stage]
        return min(self.slack[rank][: self.place[microbatch]], default=DONE) >= saved

    def admits_backward(self, stage: int) -> bool:
        """Whether there are bytes for this backward pass once all weight gradients that wait are done."""
        rank, _, _, kept = self.stages[stage]
        return self.used[rank] - self.waiting[rank] + kept <= self.cap

    def fits(self, rank: int, asked: int) -> bool:
        """Whether there are bytes for a pass now."""
        return self.used[rank] + asked <= self.cap

    def forward(self, stage: int) -> None:
        """Take note of a forward pass."""
        rank, microbatch, saved, _ = self.stages[stage]
        self.used[rank] += saved
        self._give(rank, self.place[microbatch], -saved)

    def backward(self, stage: int) -> None:
        """Take note of the pass that makes gradients of inputs, with those of weights or without."""
        rank, microbatch, saved, kept = self.stages[stage]
        self.used[rank] += kept - saved
        self.waiting[rank] += kept
        place = self.place[microbatch]
        self._give(rank, place + 1, saved)
        self.left[rank][place] -= 1
        if not self.left[rank][place]:
            self.slack[rank][place] = DONE

    def weight(self, stage: int) -> None:
        """Take note of a pass that makes gradients of weights."""
        rank, _, _, kept = self.stages[stage]
        self.used[rank] -= kept
        self.waiting[rank] -= kept

    def _give(self, rank: int, before: int, count: int) -> None:
        slack = self.slack[rank]
        for place in range(before):
            slack[place] += count


def needs(stages: Sequence[Held], ranks: int, microbatches: int) -> list[list[int]]:
    """Bytes that each rank needs for each microbatch alone: all that its forward passes save, and the largest input
    gradients' share that waits for W."""
    saved, kept = ([[0] * microbatches for _ in range(ranks)] for _ in range(2))
    for stage in stages:
        saved[stage.rank][stage.microbatch] += stage.saved
        kept[stage.rank][stage.microbatch] = max(kept[stage.rank][stage.microbatch], stage.kept)
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(saved, kept, strict=True)]
