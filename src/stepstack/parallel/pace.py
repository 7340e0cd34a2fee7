"""Passes that take the seconds of a profile, by sleeping: to run a plan for a machine that is not there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stepstack.planning.pipeline.graph import Action, PipelineGraph
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.timeline import costs_of


@dataclass
class PassPace:
    """Lets every pass take ``seconds(action)``. What it makes is sent behind its deadline only, else the passes that
    need it would begin early. ``overruns`` counts the passes whose real work outlasted their seconds, ``late`` sums up
    by how much: a run with overruns is slower than its profile. ``carried_out`` has all passes in their order."""

    seconds: Callable[[Action], float]
    overruns: int = 0
    late: float = 0.0
    carried_out: list[Action] = field(default_factory=list)
    begun: float = 0.0

    @classmethod
    def of(cls, graph: PipelineGraph, profile: PipelineProfile) -> PassPace:
        """The pace of a profile. Its link is left out: messages take the time that they take here."""
        costs = costs_of(graph, profile)
        return cls(lambda action: costs[action.chunk, action.part].seconds(action.kind))

    def begin(self) -> None:
        """The pass begins now."""
        self.begun = time.perf_counter()

    def end(self, action: Action) -> None:
        """Sleep until the pass has taken its seconds."""
        left = self.begun + self.seconds(action) - time.perf_counter()
        self.carried_out.append(action)
        if left < 0:
            self.overruns += 1
            self.late -= left
        else:
            time.sleep(left)
