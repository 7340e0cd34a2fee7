"""Passes of a batch through a model whose modules are cut over the ranks of a pipeline. No torch.

A model is some modules, such as a vision tower and a language model that reads its outputs. Each module is cut into
chunks of consecutive layers, which lie on a rank for all of the training. A microbatch has items for each module (its
pictures, its texts), which are taken through the module in parts (sub-microbatches). One part through one chunk is a
pass: forward (F), and backward as a whole (B) or as its gradients of inputs (I) and of weights (W) apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, NamedTuple

Kind = Literal["F", "B", "I", "W"]
Microbatch = Mapping[str, Sequence[float]]  # sizes of the items of each module, such as tokens
PipelineBatch = Sequence[Microbatch]


class PlanError(ValueError):
    """A plan, or what it is to be made of, that cannot be carried out."""


@dataclass(frozen=True, slots=True)
class PipelineModule:
    """A chain of layers. ``reads``: modules whose outputs it takes in, those of the same microbatch."""

    name: str
    layers: int
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Layers ``begin`` to ``end`` (exclusive) of a module, on a rank."""

    module: str
    begin: int
    end: int
    rank: int


@dataclass(frozen=True, slots=True)
class SubMicrobatch:
    """Items of a microbatch that go through a module together. ``size``: the sum of their sizes."""

    microbatch: int
    module: str
    items: tuple[int, ...]
    size: float


class Action(NamedTuple):
    """A pass of part number ``part`` through chunk number ``chunk``."""

    kind: Kind
    chunk: int
    part: int

    def __str__(self) -> str:
        return f"{self.chunk}{self.kind}{self.part}"


@dataclass(frozen=True)
class PipelineGraph:
    """All passes of a batch, and what each needs. ``chunks`` of a module follow each other, as do its layers; ``split``
    numbers the chunks whose backward passes are I and W.

    PlanError where modules, chunks and parts do not fit together.
    """

    modules: tuple[PipelineModule, ...]
    chunks: tuple[Chunk, ...]
    parts: tuple[SubMicrobatch, ...]
    split: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for number, module in enumerate(self.modules):
            if unknown := set(module.reads) - {earlier.name for earlier in self.modules[:number]}:
                raise PlanError(f"module {module.name} reads {sorted(unknown)}: name modules that stand before it")
            self._check_chunks(module)
        names = {module.name for module in self.modules}
        named = {chunk.module for chunk in self.chunks} | {part.module for part in self.parts}
        if strange := sorted(named - names):
            raise PlanError(f"there is no module {', '.join(strange)}: name one of {', '.join(sorted(names))}")
        if outside := sorted(self.split - set(range(len(self.chunks)))):
            raise PlanError(f"split names chunks {outside} of {len(self.chunks)}")
        self._check_parts()

    def _check_chunks(self, module: PipelineModule) -> None:
        at, empty = 0, f"module {module.name} of {module.layers} layers"
        for chunk in (chunk for chunk in self.chunks if chunk.module == module.name):
            if chunk.begin != at or chunk.end <= chunk.begin or chunk.rank < 0:
                raise PlanError(f"{empty}: a chunk of layers {chunk.begin} to {chunk.end} on rank {chunk.rank} at {at}")
            at = chunk.end
        if at != module.layers:
            raise PlanError(f"{empty}: its chunks end at layer {at}")

    def _check_parts(self) -> None:
        if not self.parts:
            raise PlanError("a batch without a microbatch")
        for part in self.parts:
            if not part.items or not part.size > 0:
                raise PlanError(
                    f"a part of {part.module} of microbatch {part.microbatch} without content: leave it out"
                )
            for reader in self.readers.get(part.module, ()):
                if not self.parts_of(part.microbatch, reader):
                    raise PlanError(
                        f"microbatch {part.microbatch} has items of {part.module}, and none of {reader}, which reads "
                        "them: no gradient would come back"
                    )

    # -- places --------------------------------------------------------------------------------------------------

    @property
    def ranks(self) -> int:
        return 1 + max(chunk.rank for chunk in self.chunks)

    @property
    def microbatches(self) -> int:
        return 1 + max(part.microbatch for part in self.parts)

    @cached_property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """Modules that read each module."""
        return {
            module.name: tuple(other.name for other in self.modules if module.name in other.reads)
            for module in self.modules
        }

    @cached_property
    def chain(self) -> dict[str, range]:
        """Numbers of each module's chunks, in the order of layers."""
        return {
            module.name: range(
                min(numbers := [n for n, chunk in enumerate(self.chunks) if chunk.module == module.name]),
                max(numbers) + 1,
            )
            for module in self.modules
        }

    @cached_property
    def _parts_of(self) -> dict[tuple[int, str], tuple[int, ...]]:
        found: dict[tuple[int, str], tuple[int, ...]] = {}
        for number, part in enumerate(self.parts):
            place = part.microbatch, part.module
            found[place] = (*found.get(place, ()), number)
        return found

    def parts_of(self, microbatch: int, module: str) -> tuple[int, ...]:
        """Numbers of the parts of a microbatch for a module; none where it has no items of it."""
        return self._parts_of.get((microbatch, module), ())

    # -- passes --------------------------------------------------------------------------------------------------

    def backward(self, chunk: int, part: int) -> Action:
        """The pass that makes the gradients of a chunk's inputs."""
        return Action("I" if chunk in self.split else "B", chunk, part)

    @cached_property
    def actions(self) -> tuple[Action, ...]:
        """Every pass of the batch, by part, chunk and kind."""
        return tuple(
            Action(kind, chunk, number)
            for number, part in enumerate(self.parts)
            for chunk in self.chain[part.module]
            for kind in (("F", "I", "W") if chunk in self.split else ("F", "B"))
        )

    def sources(self, action: Action) -> tuple[Action, ...]:
        """Passes whose outputs, or whose gradients of inputs, this one takes in. W has none: it uses what I left."""
        chunk, part = action.chunk, self.parts[action.part]
        chain = self.chain[part.module]
        if action.kind == "W":
            return ()
        if action.kind == "F":
            if chunk != chain[0]:
                return (Action("F", chunk - 1, action.part),)
            [module] = [module for module in self.modules if module.name == part.module]
            return tuple(
                Action("F", self.chain[read][-1], number)
                for read in module.reads
                for number in self.parts_of(part.microbatch, read)
            )
        if chunk != chain[-1]:
            return (self.backward(chunk + 1, action.part),)
        return tuple(
            self.backward(self.chain[reader][0], number)
            for reader in self.readers[part.module]
            for number in self.parts_of(part.microbatch, reader)
        )

    def needs(self, action: Action) -> tuple[Action, ...]:
        """Passes that must have ended before this one: its sources, and the earlier pass through the same chunk."""
        match action.kind:
            case "F":
                return self.sources(action)
            case "W":
                return (Action("I", action.chunk, action.part),)
            case _:
                return (*self.sources(action), Action("F", action.chunk, action.part))

    def rank_of(self, action: Action) -> int:
        return self.chunks[action.chunk].rank


@dataclass(frozen=True)
class PipelinePlan:
    """The passes of a batch in the order in which each rank carries them out.

    ``recompute``: (chunk, part, layers) where the first so many layers of a chunk keep nothing of a part but their
    input, and do its forward pass again in its backward pass.
    """

    graph: PipelineGraph
    order: tuple[tuple[Action, ...], ...]
    recompute: tuple[tuple[int, int, int], ...] = ()

    def check(self) -> None:
        """PlanError for passes that are missing, twice there or on another rank than their chunk, and for orders that
        wait for each other for ever."""
        for rank, actions in enumerate(self.order):
            for action in actions:
                if not 0 <= action.chunk < len(self.graph.chunks) or not 0 <= action.part < len(self.graph.parts):
                    raise PlanError(f"rank {rank}: {action} is no pass of this batch")
                if self.graph.rank_of(action) != rank:
                    raise PlanError(f"rank {rank}: {action} is a pass of rank {self.graph.rank_of(action)}")
        every, planned = set(self.graph.actions), [action for actions in self.order for action in actions]
        if len(planned) != len(set(planned)):
            twice = min(action for action in planned if planned.count(action) > 1)
            raise PlanError(f"pass {twice} stands in the plan {planned.count(twice)} times")
        if missing := every - set(planned):
            raise PlanError(f"{len(missing)} of {len(every)} passes are missing, such as {min(missing)}")
        if strange := set(planned) - every:
            raise PlanError(f"{min(strange)} is no pass of this batch")
        for chunk, part, layers in self.recompute:
            if (
                Action("F", chunk, part) not in every
                or not 0 < layers <= self.graph.chunks[chunk].end - self.graph.chunks[chunk].begin
            ):
                raise PlanError(f"{layers} layers of chunk {chunk} cannot be recomputed for part {part}")
        self.in_time()

    def in_time(self) -> list[Action]:
        """All passes in an order in which none stands before what it needs. PlanError where there is none."""
        done: set[Action] = set()
        at = [0] * len(self.order)
        found: list[Action] = []
        moved = True
        while moved:
            moved = False
            for rank, actions in enumerate(self.order):
                while at[rank] < len(actions) and all(need in done for need in self.graph.needs(actions[at[rank]])):
                    done.add(actions[at[rank]])
                    found.append(actions[at[rank]])
                    at[rank] += 1
                    moved = True
        waiting = {rank: actions[at[rank]] for rank, actions in enumerate(self.order) if at[rank] < len(actions)}
        if waiting:
            named = ", ".join(f"rank {rank} at {action}" for rank, action in waiting.items())
            raise PlanError(f"the ranks would wait for each other for ever: {named}")
        return found

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 of the whole plan: ranks with the same plan have the same digest."""
        graph = self.graph
        plain = {
            "modules": [asdict(one) for one in graph.modules],
            "chunks": [asdict(one) for one in graph.chunks],
            "parts": [asdict(one) for one in graph.parts],
            "split": sorted(graph.split),
            "order": self.order,
            "recompute": self.recompute,
        }
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]
