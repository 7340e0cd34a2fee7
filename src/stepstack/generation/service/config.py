"""Settings of generation in processes of its own. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from stepstack.bounds import Text
from stepstack.config import Strict

Seconds = Annotated[float, Field(gt=0, le=86400)]
DispatchName = Literal["fifo", "random", "history", "ranker"]
MOST_WORKERS = 1024
FOLDER = "stream"  # in a run's folder: address, token, weights, logs of workers, timeline
LENGTHS = "lengths.jsonl"  # in that folder: tokens of each response
TIMELINE = "timeline.jsonl"  # in that folder: who did what when


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig(Strict):
    """Rollouts by worker processes, streamed to the trainer (StreamRL, arXiv 2504.15930)."""

    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """Steps by which the policy that samples is older than the one that is trained: 0 is on-policy; at 1 the rollouts
    of a step are made while the step before it is trained."""
    consume: Literal["batch", "stream"] = "batch"
    """How rollouts are taken: batch waits for a whole step and trains as PPO does, bit for bit; stream scores,
    annotates and sums up gradients as units of work arrive, in their order, and updates once at the end."""
    uncorrected: bool = False
    """Whether staleness 1 may do without policy_loss.is_cap, which weighs tokens by trainer and sampler probability."""
    workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] = 2
    """Worker processes that the trainer starts beside itself, and anew when one dies. 0: all are started by hand, on
    any machine, with `stepstack generate`."""
    pin: bool = False
    """Whether each of them gets processor cores of its own, which the trainer then leaves to it (Linux)."""
    bind: Text = "tcp://127.0.0.1:*"
    """Address that the trainer binds: * takes a free port, which stream/address in the run's folder names. What is sent
    is not encrypted: beyond one machine use a private network."""
    dispatch: DispatchName = "fifo"
    """Unit that an idle worker gets: fifo, the first that waits; random; history, the one whose prompts had the longest
    responses so far; ranker, the one that a ranker holds for the longest. The weights do not depend on it."""
    ranker: Text | None = None
    """Folder of a ranker (`stepstack ranker`), for dispatch=ranker."""
    patience: Seconds = 60.0
    """Seconds without a sign of life after which a worker's work goes to another, and after which a run without a
    worker, or a worker without a trainer, ends."""
    timeout: Seconds = 3600.0
    """Seconds that a worker may take from one group to the next before its work goes to another."""
    weights: Literal["folder", "link"] = "folder"
    """How workers get weights: folder, files in the run's folder, which all machines must see; link, by the socket, as
    compressed differences to the version that a worker has."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Most megabytes a second that the link sends; null: as fast as it goes."""
    restarts: NonNegativeInt = 20
    """Deaths of the trainer's own workers, without a group in between, after which the run ends."""

    def __post_init__(self) -> None:
        if (self.dispatch == "ranker") != (self.ranker is not None):
            raise ValueError("dispatch=ranker and ranker=FOLDER go together: give both (`stepstack ranker` makes one)")
