"""Measured times of a model's layers, by which pipelines are planned. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from stepstack.bounds import Text
from stepstack.config import Strict
from stepstack.planning.pipeline.graph import Action, Chunk, Kind, PipelineGraph, PipelineModule, PlanError
from stepstack.planning.timing import Link
from stepstack.report import jsonl

Points = Annotated[tuple[float, ...], Field(min_length=2)]


class PassCost(NamedTuple):
    """Seconds of the passes of a part through a chunk, and the bytes that these keep: ``saved`` from the beginning of F
    to the end of B or I, ``kept`` from the beginning of I to the end of W."""

    forward: float = 0.0
    backward: float = 0.0
    input: float = 0.0
    weight: float = 0.0
    saved: float = 0.0
    kept: float = 0.0

    def seconds(self, kind: Kind) -> float:
        return {"F": self.forward, "B": self.backward, "I": self.input, "W": self.weight}[kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerProfile(Strict):
    """A layer, or an end of a module, at growing sizes of what goes through. Linear between the points and beyond
    them."""

    sizes: Points
    """Sizes of the measured parts, such as tokens, ascending."""
    forward: Points
    """Seconds of the forward pass at each size."""
    backward: Points
    """Seconds of the whole backward pass."""
    input: Points
    """Seconds of the gradients of the inputs alone."""
    weight: Points
    """Seconds of the gradients of the weights alone."""
    saved: Points
    """Bytes that the forward pass keeps for the backward pass."""
    kept: Points
    """Bytes that the gradients of the inputs keep for those of the weights."""

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            if len(values) != len(self.sizes):
                raise ValueError(f"{name} has {len(values)} values for {len(self.sizes)} sizes: give one for each")
            if not np.isfinite(values).all() or min(values) < 0:
                raise ValueError(f"{name} must be finite and not negative: measure it again")
        if min(np.diff(self.sizes)) <= 0:
            raise ValueError("sizes must ascend: sort the measurements")

    def at(self, size: float) -> PassCost:
        """Costs of a part of this size."""
        values = self.forward, self.backward, self.input, self.weight, self.saved, self.kept  # not asdict, which copies
        return PassCost(*(_line(self.sizes, points, size) for points in values))


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleProfile(Strict):
    """A module of a model: equal layers, and what stands before and after them."""

    name: Text
    """Name of the module, such as vision or text."""
    layers: PositiveInt
    """Number of its layers."""
    reads: tuple[str, ...] = ()
    """Modules before it whose outputs it takes in."""
    layer: LayerProfile
    """One of its layers."""
    entry: LayerProfile | None = None
    """What stands before its first layer, such as an embedding; null: nothing that costs."""
    exit: LayerProfile | None = None
    """What stands after its last layer, such as a head with its loss; null: nothing that costs."""
    hidden_bytes: NonNegativeFloat = 0.0
    """Bytes that a chunk sends to the next one for each unit of size."""
    output_bytes: NonNegativeFloat = 0.0
    """Bytes that its last chunk sends to modules that read it for each unit of size."""
    unit: Text = "tokens"
    """Unit of sizes, such as tokens, patches or pictures."""
    layer_parameters: NonNegativeFloat = 0.0
    """Parameters of a layer, by which static pipelines may be cut; 0: not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineProfile(Strict):
    """Times of all modules of a model on a device, and the link between two ranks."""

    model: Text
    """Name of the model."""
    device: Text
    """Device on which the times were measured, or where they come from."""
    modules: Annotated[tuple[ModuleProfile, ...], Field(min_length=1)]
    """Modules, each after those that it reads."""
    link: Link | None = None
    """Seconds of a message between two ranks by its bytes, which goes on beside computing; null: none."""
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Machine, commit and time of the measurement; empty for times that were not measured."""

    def save(self, file: Path) -> None:
        """Write the profile as JSON. Readers see the old file or the new one."""
        jsonl.write_json_atomic(file, asdict(self))

    def module(self, name: str) -> ModuleProfile:
        """The module of this name. PlanError where the profile has none."""
        for module in self.modules:
            if module.name == name:
                return module
        raise PlanError(
            f"the profile of {self.model} has no module {name}: measure it, or name one of "
            f"{', '.join(module.name for module in self.modules)}"
        )

    def graph_modules(self) -> tuple[PipelineModule, ...]:
        """The modules as a graph has them."""
        return tuple(PipelineModule(module.name, module.layers, module.reads) for module in self.modules)

    def cost(self, chunk: Chunk, size: float, again: int = 0) -> PassCost:
        """Costs of a part of this size through a chunk: its layers, and the ends of the module that are in it.
        ``again``: layers that save nothing but their input, and whose forward pass is done again in the backward
        pass."""
        module = self.module(chunk.module)
        layer = module.layer.at(size)
        parts = [PassCost(*(value * (chunk.end - chunk.begin) for value in layer))]
        if again:
            freed = max(0.0, layer.saved - module.hidden_bytes * size)
            parts.append(PassCost(backward=again * layer.forward, input=again * layer.forward, saved=-again * freed))
        if chunk.begin == 0 and module.entry is not None:
            parts.append(module.entry.at(size))
        if chunk.end == module.layers and module.exit is not None:
            parts.append(module.exit.at(size))
        return PassCost(*map(sum, zip(*parts, strict=True)))

    def transfer(self, graph: PipelineGraph, source: Action, target: Action) -> float:
        """Seconds from the end of a pass until another rank has what it needs of it; 0 on the same rank."""
        if self.link is None or graph.rank_of(source) == graph.rank_of(target):
            return 0.0
        forward, backward = (source, target) if source.kind == "F" else (target, source)
        part = graph.parts[forward.part]
        module = self.module(part.module)
        inner = graph.chunks[backward.chunk].module == part.module
        return float(self.link.time(part.size * (module.hidden_bytes if inner else module.output_bytes)))


def _line(sizes: tuple[float, ...], values: tuple[float, ...], size: float) -> float:
    """The value at a size; beyond the points the line goes on, never below 0."""
    if sizes[0] <= size <= sizes[-1]:
        return float(np.interp(size, sizes, values))
    (x0, x1), (y0, y1) = (sizes[:2], values[:2]) if size < sizes[0] else (sizes[-2:], values[-2:])
    return max(0.0, y0 + (y1 - y0) * (size - x0) / (x1 - x0))
