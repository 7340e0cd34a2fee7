"""Messages between the ranks of a pipeline: outputs of forward passes, and gradients of what they took in.

Who sends what to whom, and in which order, follows from the plan alone, and shapes from plan and batch. A directed pair
of ranks has a channel of its own, in which messages go in the order in which the sender's plan makes them. The receiver
posts its receives in that order, a few ahead, and keeps what came before it is needed; the sender never waits for a
send before the end. So a rank waits for a message only until its sender has made that message, and since passes wait
for each other without a circle, which a plan's check sees to, no plan can deadlock, also where a send ends no earlier
than its receive begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stepstack.planning.pipeline.graph import Action, PipelineGraph, PipelinePlan

AHEAD = 2  # receives that are posted before they are needed
Pair = tuple[int, int]  # ranks of sender and receiver


class Transfer(Protocol):
    """A send or a receive that goes on."""

    def wait(self) -> object: ...


class Wire(Protocol):
    """Carrier of the messages of one rank. Each call returns at once."""

    def send(self, tensor: Tensor, to: int) -> Transfer: ...

    def receive(self, into: Tensor, source: int) -> Transfer: ...


class PipelineMessage(NamedTuple):
    """A tensor that the pass ``source`` makes for the pass ``target``."""

    source: Action
    target: Action


@dataclass(frozen=True)
class Routes:
    """All messages of a plan. ``targets``: the passes that take in what a pass makes. ``learned``: the (chunk, part)
    whose outputs have gradients; others get none back."""

    plan: PipelinePlan
    targets: Mapping[Action, tuple[Action, ...]]
    learned: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, plan: PipelinePlan, learns: Sequence[bool]) -> Routes:
        """``learns``: whether something is trained in each chunk."""
        graph = plan.graph
        learned = _learned(graph, learns)
        targets: dict[Action, list[Action]] = {action: [] for action in graph.actions}
        for action in graph.actions:
            for source in graph.sources(action):
                if source.kind == "F" or (action.chunk, action.part) in learned:
                    targets[source].append(action)
        return cls(plan, {action: tuple(found) for action, found in targets.items()}, learned)

    def sources(self, action: Action) -> tuple[Action, ...]:
        """Passes from which a message comes for this one."""
        if action.kind == "F" or (action.chunk, action.part) in self.learned:
            return self.plan.graph.sources(action)
        return ()

    def between(self, sender: int, receiver: int) -> Iterator[PipelineMessage]:
        """Messages from one rank to another, in the order in which the sender makes them."""
        graph = self.plan.graph
        for action in self.plan.order[sender]:
            for target in self.targets[action]:
                if graph.rank_of(target) == receiver:
                    yield PipelineMessage(action, target)


def _learned(graph: PipelineGraph, learns: Sequence[bool]) -> frozenset[tuple[int, int]]:
    known: dict[Action, bool] = {}
    for action in graph.actions:
        path = [action] if action.kind == "F" else []
        while path:
            sources = graph.sources(path[-1])
            if unknown := [source for source in sources if source not in known]:
                path += unknown
            else:
                last = path.pop()
                known[last] = learns[last.chunk] or any(known[source] for source in sources)
    return frozenset((action.chunk, action.part) for action, found in known.items() if found)


class Channels:
    """The messages of one rank during a batch. ``empty(message)`` makes the tensor that a message is received into.

    A message between passes of the same rank is handed over as it is.
    """

    def __init__(self, routes: Routes, rank: int, wire: Wire, empty: Callable[[PipelineMessage], Tensor]):
        self.rank, self.wire, self.empty = rank, wire, empty
        self.graph = routes.plan.graph
        self.expected = {
            other: deque(routes.between(other, rank)) for other in range(len(routes.plan.order)) if other != rank
        }
        self.posted: dict[int, deque[tuple[PipelineMessage, Tensor, Transfer]]] = {
            other: deque() for other in self.expected
        }
        self.come: dict[PipelineMessage, Tensor] = {}
        self.sent: dict[PipelineMessage, tuple[Tensor, Transfer]] = {}
        self.broken: set[int] = set()  # ranks from which a message did not come
        for other in self.expected:
            self._post(other)

    def _post(self, other: int) -> None:
        expected, posted = self.expected[other], self.posted[other]
        while expected and len(posted) < AHEAD:
            message = expected.popleft()
            tensor = self.empty(message)
            posted.append((message, tensor, self.wire.receive(tensor, other)))

    def send(self, message: PipelineMessage, tensor: Tensor) -> None:
        """Give a message away. What it holds must not change any more."""
        to = self.graph.rank_of(message.target)
        if to == self.rank:
            self.come[message] = tensor
            return
        tensor = tensor.contiguous()
        self.sent[message] = tensor, self.wire.send(tensor, to)

    def take(self, message: PipelineMessage) -> Tensor:
        """Wait for a message."""
        other = self.graph.rank_of(message.source)
        while message not in self.come:
            first, tensor, work = self._next(other)
            try:
                work.wait()
            except RuntimeError as error:  # the library's names neither the rank nor the message
                self.broken.add(other)
                raise RuntimeError(f"pass {first.source} of rank {other} did not come: {error}") from error
            self.come[first] = tensor
            self._post(other)
        self._settle(message)
        return self.come.pop(message)

    def _next(self, other: int) -> tuple[PipelineMessage, Tensor, Transfer]:
        if other in self.broken:
            raise RuntimeError(f"nothing comes from rank {other} any more")
        return self.posted[other].popleft()

    def _settle(self, message: PipelineMessage) -> None:
        """Let go of the output whose gradient has come: its send must have ended."""
        source, target = message
        output = PipelineMessage(Action("F", target.chunk, target.part), Action("F", source.chunk, source.part))
        if target.kind != "F" and output in self.sent:
            self.sent.pop(output)[1].wait()

    def finish(self) -> None:
        """Wait until all sends have ended."""
        for _, work in self.sent.values():
            work.wait()
        self.sent.clear()


def meet(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
    """RuntimeError for a tensor that is not what its receiver waits for, which would read it as something else."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise RuntimeError(
            f"{what} made {tuple(tensor.shape)} numbers of {tensor.dtype}, and not {shape} of {dtype}: the model "
            "computes in other shapes or types than its chunks say"
        )
