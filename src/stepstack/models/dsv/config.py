"""What can be chosen about DSV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from stepstack.config import Count, Positive, Strict
from stepstack.models.dsv.predictor import rope_split
from stepstack.planning.contextparallel import Cluster, Options

Fraction = Annotated[float, Field(ge=0, le=1)]


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
    cube: tuple[Positive, Positive, Positive] = (4, 4, 4)
    selector: Literal["low_rank", "pooled"] = "low_rank"  # pooled: means of q and k over a cube, nothing is learnt
    rank: Positive = 16  # of the predictors, a head
    mass: Annotated[float, Field(gt=0, lt=1)] = 0.9  # of the softmax that critical keys hold together
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9  # weight of the old sparsity
    sampling: Positive = 16  # one in so many query cubes is looked at
    switch: float = 0.01  # mean loss of the predictors at which stage 2 begins
    warmup: Count = 0  # stage 2 begins no sooner than after so many steps
    every: Positive = 1  # predictors learn and sparsity is profiled on each so many-th step of stage 1
    every_sparse: Positive = 4  # the same in stage 2
    lr: float = 1e-3  # of the predictors in stage 1
    lr_sparse: float = 1e-4  # the same in stage 2
    seed: int = 0

    def __post_init__(self) -> None:
        rope_split(self.rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextPlan(Strict):
    """How processes share sparse attention: heads and queries go where ``planning.contextparallel`` puts them by
    ``cluster``'s times and the heads' sparsity, as that is when stage 2 begins and at each ``every``-th step from then
    on. ``cluster.memory`` is counted for one sample."""

    cluster: Cluster
    options: Options = Options()
    every: Positive = 1000
