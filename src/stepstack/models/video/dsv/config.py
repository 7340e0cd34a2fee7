"""Settings of DSV. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from stepstack.bounds import Decay, Fraction, LearningRate, Magnitude, Text
from stepstack.config import ConfigError, Strict
from stepstack.planning.contextparallel.problem import Cluster, PlanOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured(Strict):
    """A block goes sparse where that is faster, by the speed profile that `stepstack profile dsv` made."""

    type: Literal["measured"] = "measured"
    """Choice of the dispatch: by measured times."""
    file: Text
    """Speed profile, a JSON file of `stepstack profile dsv`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed(Strict):
    """A block goes sparse from one sparsity on, whatever the speed."""

    type: Literal["fixed"] = "fixed"
    """Choice of the dispatch: by a fixed sparsity."""
    sparsity: Fraction = 0.0
    """Sparsity from which on a block leaves dense attention; 0: every block does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DsvConfig(Strict):
    """DSV's numbers, the published ones where there are any; learning rates, intervals and thresholds were not
    published."""

    dispatch: Annotated[Measured | Fixed, Field(discriminator="type")]
    """When a block leaves dense attention."""
    cube: tuple[PositiveInt, PositiveInt, PositiveInt] = (4, 4, 4)
    """Latent frames, rows and columns of the cubes whose tokens share one list of keys; a cube is a block of the
    kernels."""
    selector: Literal["low_rank", "pooled"] = "low_rank"
    """How critical keys are found: low_rank by predictors that learn; pooled by means of q and k over a cube, where
    nothing is learnt."""
    rank: PositiveInt = 16
    """Rank of the predictors of a head, a multiple of 8."""
    mass: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the softmax that critical keys hold together."""
    ema: Decay = 0.9
    """Weight of the old sparsity in its moving average."""
    sampling: PositiveInt = 16
    """Number of query cubes of which one is looked at when sparsity is profiled."""
    switch: Magnitude = 0.01
    """Mean loss of the predictors under which stage 2 begins."""
    warmup: NonNegativeInt = 0
    """Steps before which stage 2 does not begin."""
    every: PositiveInt = 1
    """Steps of stage 1 from one on which predictors learn and sparsity is profiled to the next."""
    every_sparse: PositiveInt = 4
    """Steps of stage 2 from one on which predictors learn and sparsity is profiled to the next."""
    lr: LearningRate = 1e-3
    """Learning rate of the predictors in stage 1."""
    lr_sparse: LearningRate = 1e-4
    """Learning rate of the predictors in stage 2."""
    seed: NonNegativeInt = 0
    """Seed of the query cubes that are looked at."""

    def __post_init__(self) -> None:
        rope_split(self.rank)


def rope_split(rank: int) -> tuple[int, int, int]:
    """Numbers of ``rank`` that turn with the frame, the row and the column: a half, a quarter, a quarter.

    RoPE-3D divides a head in the same way in Step-Video (arXiv 2502.10248). ConfigError for a rank that does not
    divide.
    """
    if rank < 8 or rank % 8:
        raise ConfigError(f"rank {rank} does not split into 1/2, 1/4, 1/4 of whole pairs: take a multiple of 8")
    return rank // 2, rank // 4, rank // 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextPlan(Strict):
    """How processes share sparse attention: heads and queries go where ``planning.contextparallel`` puts them by
    ``cluster``'s times and the heads' sparsity."""

    cluster: Cluster
    """Ranks that share a video, their memory for one sample, and measured times."""
    options: PlanOptions = PlanOptions()
    """How the planner searches."""
    every: PositiveInt = 1000
    """Steps between two plans; the first is made when stage 2 begins, each by the sparsity of its moment."""
