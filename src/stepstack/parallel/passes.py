"""The passes of one rank of a pipeline, carried out in the order of its plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

from stepstack.models.chunks import TensorSpec, TokenInputs
from stepstack.parallel.channels import Channels, PipelineMessage, Routes, Wire, meet
from stepstack.parallel.pace import PassPace
from stepstack.planning.pipeline.graph import Action, PipelinePlan, SubMicrobatch


class TrainedInputs(TokenInputs, Protocol):
    """The part of a ``batching.collate.TokenMicroBatch`` that is read here. A blank one must weigh nothing."""

    blank: bool


class LossResult(Protocol):
    """A ``core.types.LossOut``."""

    @property
    def total(self) -> Tensor: ...

    @property
    def count(self) -> float: ...

    @property
    def work(self) -> float: ...

    @property
    def metrics(self) -> Mapping[str, Tensor]: ...


Loss = Callable[[Any, Any], LossResult]


@dataclass(frozen=True)
class LossSums:
    """A ``LossResult`` without its graph, which would keep what metrics were computed from: logits of all tokens."""

    total: Tensor
    count: float
    work: float
    metrics: Mapping[str, Tensor]


class HeldChunk(Protocol):
    """A chunk of ``models.chunks``."""

    trained: list[torch.nn.Parameter]
    twice: list[torch.nn.Parameter]

    def __call__(self, micro: Any, part: SubMicrobatch, inputs: Sequence[tuple[SubMicrobatch, Tensor]]) -> Tensor: ...


class Chunks(Protocol):
    """A ``models.chunks.PolicyCut``, as far as passes need it."""

    @property
    def rank(self) -> int: ...

    @property
    def held(self) -> Mapping[int, Any]: ...

    @property
    def learns(self) -> Sequence[bool]: ...

    def message(self, chunk: int, micro: Any, part: SubMicrobatch) -> TensorSpec: ...


@dataclass
class Saved:
    """Remains of a forward pass that its backward passes need: its output, or its loss, and what it took in by the pass
    that made it. I adds what W needs: the groups of parameters that torch found, or where no gradient of an input was
    wanted, the gradient of the output."""

    output: Tensor
    inputs: dict[Action, Tensor]
    groups: list[dict[str, Any]] | None = None
    grad: Tensor | None = None


@dataclass(frozen=True)
class Failure:
    """A pass that raised an error. Of several the one with the smallest ``place`` in the plan's order in time was the
    first: others may have come from it."""

    place: int
    text: str
    error: Exception


@dataclass
class RankPasses:
    """One rank's part of a batch. After ``run`` gradients are in ``.grad``, summed up, and ``losses`` has what the loss
    returned for each microbatch, on the rank that computes it.

    A pass that fails ends the computing of this rank, and not its messages: it goes on to take and to send what the
    others wait for, zeros, so that all come to the end of the batch, where they learn of it.
    """

    plan: PipelinePlan
    chunks: Chunks
    micros: Sequence[Any]
    loss: Loss
    weight: float
    autocast: Callable[[], AbstractContextManager]
    wire: Wire
    device: torch.device
    pace: PassPace | None = None

    def __post_init__(self) -> None:
        self.graph = self.plan.graph
        self.routes = Routes.of(self.plan, self.chunks.learns)
        self.saved: dict[tuple[int, int], Saved] = {}
        self.losses: dict[int, LossSums] = {}
        self.failure: Failure | None = None
        with self.autocast():  # types of messages depend on it
            self.shapes = {
                (chunk, number): self.chunks.message(chunk, self.micros[part.microbatch], part)
                for number, part in enumerate(self.graph.parts)
                for chunk in self.graph.chain[part.module]
            }

    def empty(self, message: PipelineMessage) -> Tensor:
        """Zeros as what a message holds: an output, or its gradient."""
        source, target = message
        owner = source if source.kind == "F" else target
        shape, dtype = self.shapes[owner.chunk, owner.part]
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def run(self) -> None:
        place = {action: number for number, action in enumerate(self.plan.in_time())}
        channels = Channels(self.routes, self.chunks.rank, self.wire, self.empty)
        for action in self.plan.order[self.chunks.rank]:
            made: dict[Action, Tensor] = {}
            with self._noted(place[action], f"pass {action}"):
                taken = [
                    (source, channels.take(PipelineMessage(source, action))) for source in self.routes.sources(action)
                ]
                if self.failure is None:
                    made = self._paced(action, taken)
            for target in self.routes.targets[action]:
                message = PipelineMessage(action, target)
                with self._noted(place[action], f"message of pass {action}"):
                    channels.send(message, made[target] if target in made else self.empty(message))
        with self._noted(len(place), "the end of its messages"):
            channels.finish()

    @contextmanager
    def _noted(self, place: int, what: str) -> Iterator[None]:
        """Keep the first error, with where it happened."""
        try:
            yield
        except Exception as error:  # whatever it is, every rank has to raise it
            if self.failure is None:
                self.failure = Failure(place, f"{what}: {type(error).__name__}: {error}", error)

    def _paced(self, action: Action, taken: list[tuple[Action, Tensor]]) -> dict[Action, Tensor]:
        if self.pace is not None:
            self.pace.begin()
        match action.kind:
            case "F":
                made = self._forward(action, taken)
            case "W":
                made = self._weights(action)
            case _:
                made = self._backward(action, taken)
        if self.pace is not None:
            self.pace.end(action)
        return made

    def _forward(self, action: Action, taken: list[tuple[Action, Tensor]]) -> dict[Action, Tensor]:
        chunk, place = self.chunks.held[action.chunk], (action.chunk, action.part)
        part = self.graph.parts[action.part]
        inputs = {
            source: tensor.requires_grad_((source.chunk, source.part) in self.routes.learned)
            for source, tensor in taken
        }
        micro = self.micros[part.microbatch]
        with torch.set_grad_enabled(place in self.routes.learned), self.autocast():
            named = [(self.graph.parts[source.part], tensor) for source, tensor in inputs.items()]
            output = chunk(micro, part, named)
            meet(output, *self.shapes[place], str(action))
            if not self.routes.targets[action]:
                output = self._scored(chunk, output, micro, part.microbatch)
        if place in self.routes.learned:
            self.saved[place] = Saved(output, inputs)
        return {target: output.detach() for target in self.routes.targets[action]}

    def _scored(self, chunk: Any, output: Tensor, micro: TrainedInputs, number: int) -> Tensor:
        """The weighted loss of a microbatch; a blank one has none, and its loss may be no number."""
        found = self.loss(chunk.scorer(output), micro)
        if not micro.blank:
            metrics = {name: value.detach() for name, value in found.metrics.items()}
            self.losses[number] = LossSums(found.total.detach(), found.count, found.work, metrics)
        return torch.where(torch.tensor(micro.blank, device=found.total.device), 0.0, found.total) * self.weight

    def _backward(self, action: Action, taken: list[tuple[Action, Tensor]]) -> dict[Action, Tensor]:
        place = action.chunk, action.part
        if place not in self.routes.learned:
            return {}
        saved = self.saved[place]
        grad = reduce(torch.add, [tensor for _, tensor in taken]) if taken else torch.ones_like(saved.output)
        leaves = [tensor for tensor in saved.inputs.values() if tensor.requires_grad]
        if action.kind == "B":
            torch.autograd.backward(saved.output, grad)
        elif leaves:
            # A parameter with two uses, of which one is behind the other, is no case for torch's split: it gets its
            # gradient here, as an input.
            chunk = self.chunks.held[action.chunk]
            _, saved.groups = stage_backward_input([saved.output], [grad], [*leaves, *chunk.twice], _once(chunk))
        else:
            saved.grad = grad  # nobody waits for a gradient: W makes all
        made = {
            self.graph.backward(source.chunk, source.part): tensor.grad
            for source, tensor in saved.inputs.items()
            if tensor.grad is not None
        }
        if action.kind == "B":
            del self.saved[place]
        else:
            saved.inputs.clear()
        return made

    def _weights(self, action: Action) -> dict[Action, Tensor]:
        place = action.chunk, action.part
        if place in self.routes.learned:
            saved = self.saved.pop(place)
            if saved.groups is None:
                torch.autograd.backward(saved.output, saved.grad)
            else:
                stage_backward_weight(_once(self.chunks.held[action.chunk]), saved.groups)
        return {}


def _once(chunk: HeldChunk) -> Iterator[torch.nn.Parameter]:
    twice = {id(parameter) for parameter in chunk.twice}
    return (parameter for parameter in chunk.trained if id(parameter) not in twice)
