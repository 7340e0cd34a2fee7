"""The key ``pipeline`` of a training. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from stepstack.bounds import Text
from stepstack.planning.pipeline.job import PipelineOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig(PipelineOptions):
    """A model that is cut over the ranks of a pipeline, with a plan for each batch (PipeWeaver, arXiv 2504.14145). The
    cut is made for the first batches, and stays."""

    ranks: Annotated[int, Field(ge=2, le=1024)]
    """Processes that the model is cut over; of more processes, each so many are a replica."""
    profile: Text | None = None
    """Path of a profile that `stepstack profile pipeline` wrote; null: seconds by numbers of parameters."""

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.profile is None else (self.profile,)

    def __post_init__(self) -> None:
        if self.cap is not None and self.profile is None:
            raise ValueError("cap is about measured bytes: set profile to a file of `stepstack profile pipeline`")
