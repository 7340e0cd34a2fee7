"""The protocol of engines that answer the questions of an evaluation; harness/engines holds those that there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stepstack.generation.prompts import Request
from stepstack.generation.types import Answer, Budget
from stepstack.records import Problem


@dataclass(frozen=True, slots=True)
class Question:
    """A problem and how it is put to the model. Seeds derive from ``problem.index``."""

    problem: Problem
    request: Request


class Engine(Protocol):
    """``batch``: samples that it likes to be given at a time. ``facts``: plain JSON that tells how it computes."""

    batch: int
    facts: Mapping[str, Any]

    def complete(self, questions: Sequence[Question], budget: Budget) -> Iterator[tuple[Question, list[Answer]]]:
        """Each question with its ``budget.n`` answers, as soon as it has them, in any order.

        Raises EngineError when the engine is gone, or cannot spend such a budget; a failure of one request is an Answer
        with an error.
        """
        ...

    def loglikelihood(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """(sum of log-probabilities of the continuation, whether it is the greedy one) of (context, continuation)
        token ids. Raises EngineError where the engine cannot tell."""
        ...
