"""Settings of DSV. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from stepstack.config import ConfigError, Fraction, Strict
from stepstack.planning.contextparallel.problem import Cluster, PlanOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured(Strict):
    """A block goes sparse where that is faster, by the speed profile that `stepstack profile dsv` made."""

    type: Literal["measured"] = "measured"
    file: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed(Strict):
    """A block goes sparse from this sparsity on, whatever the speed; 0: every block."""

    type: Literal["fixed"] = "fixed"
    sparsity: Fraction = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DsvConfig(Strict):
    """DSV's numbers, the published ones where there are any; learning rates, intervals and thresholds were not
    published. ``cube``: latent frames, rows and columns of the cubes whose tokens share one list of keys; a cube is a
    block of the kernels. ``dispatch``: when a block leaves dense attention."""

    dispatch: Annotated[Measured | Fixed, Field(discriminator="type")]
    cube: tuple[PositiveInt, PositiveInt, PositiveInt] = (4, 4, 4)
    selector: Literal["low_rank", "pooled"] = "low_rank"  # pooled: means of q and k over a cube, nothing is learnt
    rank: PositiveInt = 16  # of the predictors, a head
    mass: Annotated[float, Field(gt=0, lt=1)] = 0.9  # of the softmax that critical keys hold together
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9  # weight of the old sparsity
    sampling: PositiveInt = 16  # one in so many query cubes is looked at
    switch: float = 0.01  # mean loss of the predictors at which stage 2 begins
    warmup: NonNegativeInt = 0  # stage 2 begins no sooner than after so many steps
    every: PositiveInt = 1  # predictors learn and sparsity is profiled on each so many-th step of stage 1
    every_sparse: PositiveInt = 4  # the same in stage 2
    lr: float = 1e-3  # of the predictors in stage 1
    lr_sparse: float = 1e-4  # the same in stage 2
    seed: int = 0

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
    ``cluster``'s times and the heads' sparsity, as that is when stage 2 begins and at each ``every``-th step from then
    on. ``cluster.memory`` is counted for one sample."""

    cluster: Cluster
    options: PlanOptions = PlanOptions()
    every: PositiveInt = 1000
