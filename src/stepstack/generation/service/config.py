"""Settings of generation in processes of its own. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from stepstack.bounds import Magnitude, Text
from stepstack.config import Strict
from stepstack.planning.rollout.dispatch import (
    FifoDispatch,
    HistoryDispatch,
    LengthDispatch,
    LongestDispatch,
    OracleDispatch,
    RandomDispatch,
    SiblingDispatch,
    StealDispatch,
)

Seconds = Annotated[float, Field(gt=0, le=86400)]
MOST_WORKERS = 1024
FOLDER = "stream"  # in a run's folder: address, token, weights, logs of workers, timeline
LENGTHS = "lengths.jsonl"  # in that folder: tokens of each response
TIMELINE = "timeline.jsonl"  # in that folder: who did what when
NO_POLICY_OF_A_RUN = {
    "oracle": "needs the true lengths, which only a simulation knows: take length with a ranker, or history",
    "sibling": "orders the samples of a prompt, which a unit of a run holds together: take history or longest",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedLength(LengthDispatch):
    """Algorithm 2 by the estimates of a ranker, the longest of a unit's prompts counting."""

    ranker: Text
    """Folder of a ranker that `stepstack ranker` made."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.ranker,)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedLongest(LongestDispatch):
    """One queue, the longest estimate first."""

    ranker: Text | None = None
    """Folder of a ranker that `stepstack ranker` made; null: estimates are means of earlier responses."""

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.ranker is None else (self.ranker,)


StreamDispatch = (
    FifoDispatch
    | RandomDispatch
    | RankedLength
    | HistoryDispatch
    | RankedLongest
    | StealDispatch
    | OracleDispatch
    | SiblingDispatch
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig(Strict):
    """Rollouts by worker processes, streamed to the trainer (StreamRL, arXiv 2504.15930)."""

    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """Steps by which the policy that samples is older than the one that is trained: 0 is on-policy; at 1 the rollouts
    of a step are made while the step before it is trained."""
    consume: Literal["batch", "stream", "groups"] = "batch"
    """How rollouts are taken: batch waits for a whole step and trains as PPO does, bit for bit; stream scores,
    annotates and sums up gradients as units of work arrive, in their order, and updates once at the end; groups does so
    with each group as it ends, which is the fastest, and whose last bits depend on which ends first."""
    uncorrected: bool = False
    """Whether staleness 1 may do without policy_loss.is_cap, which weighs tokens by trainer and sampler probability."""
    workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] = 2
    """Worker processes that the trainer starts beside itself, and anew when one dies. 0: all are started by hand, on
    any machine, with `stepstack generate`."""
    dispatch: Annotated[StreamDispatch, Field(discriminator="type")] = FifoDispatch()
    """Policy that hands units of work to workers; it changes when a step is there, at staleness 0 with consume=batch
    never its bits. oracle and sibling are for `stepstack sim rollout` alone."""
    pin: bool = False
    """Whether each of them gets processor cores of its own, which the trainer then leaves to it (Linux)."""
    bind: Text = "tcp://127.0.0.1:*"
    """Address that the trainer binds: * takes a free port, which stream/address.json in the run's folder names. What
    is sent is not encrypted: beyond one machine use a private network."""
    patience: Seconds = 60.0
    """Seconds without a sign of life after which a worker's work goes to another, and after which a run without a
    worker, or a worker without a trainer, ends."""
    timeout: Seconds = 3600.0
    """Seconds that a worker may take from one group to the next before its work goes to another."""
    weights: Literal["folder", "link"] = "folder"
    """How workers get weights: folder, files in the run's folder, which all machines must see; link, by the socket, as
    compressed differences to the version that a worker has."""
    rate: Magnitude | None = None
    """Most megabytes a second that the link sends; null: as fast as it goes."""
    restarts: NonNegativeInt = 20
    """Deaths of the trainer's own workers, without a group in between, after which the run ends."""

    def __post_init__(self) -> None:
        if why := NO_POLICY_OF_A_RUN.get(self.dispatch.type):
            raise ValueError(f"dispatch.type={self.dispatch.type} {why}")
