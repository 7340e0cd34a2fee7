"""Which waiting unit a worker gets. The weights never depend on it, only the time that a step takes. No torch.

The estimates and orders are the planner's (``planning.rollout.dispatch``); a unit counts as long as its longest prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepstack.generation.service.buffer import WorkUnit, first_in_first_out
from stepstack.generation.service.config import DispatchName
from stepstack.generation.types import rollout_seed
from stepstack.planning.rollout.dispatch import History, Unit


class Dispatch:
    """Policy of a run. ``estimates``: tokens by problem, of a ranker. Work of the oldest step goes first, whatever the
    policy."""

    def __init__(self, name: DispatchName, seed: int = 0, estimates: Mapping[int, float] | None = None):
        self.name, self.seed, self.estimates, self.history = name, seed, estimates or {}, History()

    def choose(self, waiting: Sequence[WorkUnit], worker: str) -> WorkUnit:
        oldest = min(unit.step for unit in waiting)
        units = sorted((unit for unit in waiting if unit.step == oldest), key=lambda unit: unit.number)
        match self.name:
            case "fifo":
                return first_in_first_out(units, worker)
            case "random":
                return min(units, key=lambda unit: rollout_seed(self.seed, unit.step, unit.number))
            case "history":
                return max(units, key=self._longest(lambda problem: self.history(Unit(0, 0, problem))))
            case "ranker":
                return max(units, key=self._longest(self.estimates.__getitem__))

    def ended(self, problem: int, tokens: Sequence[int]) -> None:
        """Take note of the lengths of a problem's responses."""
        for count in tokens:
            self.history.add(Unit(0, 0, problem), count)

    def _longest(self, estimate: Callable[[int], float]) -> Callable[[WorkUnit], float]:
        return lambda unit: max(map(estimate, unit.problems))

    def state(self) -> dict[str, Any]:
        return {"sums": [[problem, *sums] for problem, sums in self.history.sums.items()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.history.sums = {problem: (tokens, count) for problem, tokens, count in state["sums"]}
        tokens, counts = zip(*self.history.sums.values(), strict=True) if self.history.sums else ((), ())
        self.history.total = (sum(tokens), sum(counts))
