"""File of `stepstack plan rollout` and `stepstack sim rollout`, and the plan that it leads to. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from stepstack.bounds import Fraction, Text
from stepstack.config import Strict
from stepstack.planning.rollout import allocation, skew
from stepstack.planning.rollout.allocation import Allocation, Growth
from stepstack.planning.rollout.curves import DecodeGeneration, StageGeneration, StepTraining, TokenTraining
from stepstack.planning.rollout.dispatch import DispatchConfig, FifoDispatch
from stepstack.planning.rollout.generation import even_seconds
from stepstack.planning.rollout.lengths import Counts, LengthSource, evenly
from stepstack.planning.rollout.skew import Objective, Split
from stepstack.report.formats import Table, render

PipelineName = Literal["colocated", "batch", "mini-batch", "stream", "one-step", "async"]
PIPELINES: tuple[PipelineName, ...] = ("colocated", "batch", "mini-batch", "stream", "one-step", "async")
PRICES = {"H20": 1.0, "H800": 2.85}  # of a machine, as StreamRL's evaluation has them


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool(Strict):
    """Devices of one kind in one place."""

    device: Text
    """Kind of device, a key of prices."""
    devices: PositiveInt
    """Number of devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneDatacentre(Strict):
    """One pool, which generation and training share."""

    type: Literal["single"] = "single"
    device: Text
    """Kind of device, a key of prices."""
    devices: Annotated[int, Field(ge=2)]
    """Number of devices: 2 or more, since generation and training each need one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoDatacentres(Strict):
    """A pool for each stage, joined by a link."""

    type: Literal["cross"] = "cross"
    generation: Pool
    """Devices of generation."""
    training: Pool
    """Devices of training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowthOptions(Strict):
    """Workload whose responses grow while it trains."""

    iterations: PositiveInt
    """Iterations over which lengths grow linearly."""
    factor: PositiveFloat
    """Length at the end over that of the file."""
    most: PositiveInt
    """Devices that generation may have at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Death(Strict):
    """Generation instance that dies; what ran on it is done elsewhere from its start."""

    instance: NonNegativeInt
    """Number of the instance."""
    seconds: NonNegativeFloat
    """Time of its death since the start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationOptions(Strict):
    """How `stepstack sim rollout` simulates the file."""

    iterations: PositiveInt = 6
    """Iterations from the first prompt to the last update."""
    seed: NonNegativeInt = 0
    """Seed of lengths and of the ranker's errors."""
    pipelines: Annotated[tuple[PipelineName, ...], Field(min_length=1)] = PIPELINES
    """Pipelines to compare."""
    saturate: PositiveInt | None = None
    """Tokens with which a streaming trainer starts a micro-step; null: an eighth of an iteration's."""
    mini_batches: PositiveInt = 4
    """Mini-batches of an iteration that the pipeline mini-batch hands over."""
    ranker_error: NonNegativeFloat = 0.45
    """Standard deviation of the logarithm of a ranker's estimate around that of the length."""
    unlike_siblings: Fraction = 0.25
    """Share of the variance of lengths that lies between the samples of one prompt; 1: they are independent."""
    deaths: tuple[Death, ...] = ()
    """Instances that die."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutJob(Strict):
    """Workload, measured times and machines of generation and training."""

    rows: PositiveInt
    """Responses of an iteration."""
    samples: PositiveInt = 1
    """Responses of a prompt, which are trained on together."""
    lengths: LengthSource
    """Tokens of the responses."""
    generation: Annotated[DecodeGeneration | StageGeneration, Field(discriminator="type")]
    """Times of generation."""
    training: Annotated[TokenTraining | StepTraining, Field(discriminator="type")]
    """Times of training."""
    machines: Annotated[OneDatacentre | TwoDatacentres, Field(discriminator="type")]
    """Devices there are."""
    unit: PositiveInt = 1
    """Devices that are added to a stage or taken from it together."""
    prices: Mapping[str, PositiveFloat] = field(default_factory=lambda: dict(PRICES))
    """Cost of a machine by its kind of device, in any unit."""
    machine_devices: PositiveInt = 8
    """Devices of a machine."""
    weights_seconds: NonNegativeFloat = 0.0
    """Seconds of a transfer of weights from training to generation."""
    long_share: Annotated[float, Field(gt=0, lt=1)] = skew.LONG_SHARE
    """Share of the prompts that count as long in algorithm 2."""
    objective: Objective = "max"
    """Value of a split in algorithm 2: paper adds the seconds of its two parts, max takes the slower part."""
    dispatch: DispatchConfig = FifoDispatch()
    """Policy that hands rows to instances in the simulation."""
    growth: GrowthOptions | None = None
    """Lengths that grow, for a schedule of added units; null: they stay."""
    simulation: SimulationOptions = SimulationOptions()
    """Settings of the simulation."""

    def __post_init__(self) -> None:
        if self.rows % self.samples:
            raise ValueError(f"rows = {self.rows} is no multiple of samples = {self.samples}: change one of them")
        for key, pool in self.pools.items():
            if pool.device not in self.prices:
                raise ValueError(
                    f"{key}.device = {pool.device!r} has no price: name one of {', '.join(sorted(self.prices))}, or "
                    "give it one in prices"
                )
            if pool.devices < self.unit:
                raise ValueError(f"{key}.devices = {pool.devices} is less than unit = {self.unit}: change one of them")
        if self.instance_devices and self.unit % self.instance_devices:
            raise ValueError(
                f"unit = {self.unit} is no multiple of generation.instance_devices = {self.instance_devices}: an "
                "instance would be cut; change one of them"
            )
        if isinstance(self.machines, OneDatacentre) and self.machines.devices < 2 * self.unit:
            raise ValueError(f"machines.devices = {self.machines.devices} must hold two units of unit = {self.unit}")
        if self.growth and (self.generation.type, self.training.type) != ("decode", "token"):
            raise ValueError(
                "growth changes lengths, of which seconds of a step know nothing: give generation.type = 'decode' and "
                "training.type = 'token', or leave growth out"
            )

    @property
    def pools(self) -> dict[str, Pool]:
        """Pools by their keys in the file."""
        match self.machines:
            case OneDatacentre(device=device, devices=devices):
                return {"machines": Pool(device=device, devices=devices)}
            case TwoDatacentres(generation=generation, training=training):
                return {"machines.generation": generation, "machines.training": training}

    @property
    def instance_devices(self) -> int:
        """Devices of a generation instance, 0 where the file has no instances."""
        return self.generation.instance_devices if isinstance(self.generation, DecodeGeneration) else 0

    def price(self, found: Allocation) -> float:
        """Cost of the machines of an allocation, parts of a machine included."""
        first, last = next(iter(self.pools.values())), list(self.pools.values())[-1]
        parts = ((first.device, found.generation), (last.device, found.training))
        return sum(self.prices[device] * devices / self.machine_devices for device, devices in parts)


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """Devices, the split of prompts where there are two instances or more, and what follows from both.

    ``next_unit_gain``: seconds of generation that one more unit would save, delta' of elastic growth. ``throughput``:
    rows a second when both stages overlap. ``per_price``: throughput over the cost of all machines.
    """

    allocation: Allocation
    split: Split | None
    tokens: int
    next_unit_gain: float
    throughput: float
    price: float
    per_price: float
    growth: tuple[Growth, ...]


def generation_seconds(job: RolloutJob, lengths: Counts, devices: int) -> float:
    """P_gen: seconds of generating rows of these lengths. Instances are dealt rows of all lengths evenly."""
    match job.generation:
        case DecodeGeneration(cap=cap, instance_devices=size):
            return even_seconds(lengths, devices // size, cap, job.generation)
        case StageGeneration():
            return job.generation.at(devices)


def training_seconds(job: RolloutJob, tokens: float, devices: int) -> float:
    """P_train: seconds of training on all rows of an iteration."""
    match job.training:
        case TokenTraining():
            return tokens * job.training.at(devices)
        case StepTraining():
            return job.training.at(devices)


def make_plan(job: RolloutJob) -> RolloutPlan:
    """Plan of the job, from lengths that stand for their distribution: nothing is drawn."""
    lengths = evenly(job.lengths, job.rows)
    tokens = int(lengths.sum())
    generation, training = partial(generation_seconds, job, lengths), partial(training_seconds, job, tokens)
    match job.machines:
        case OneDatacentre(devices=devices):
            found = allocation.single(devices, generation, training, job.unit)
        case TwoDatacentres(generation=first, training=second):
            found = allocation.cross(first.devices, second.devices, generation, training, job.unit)
    throughput, price = job.rows / found.seconds, job.price(found)
    return RolloutPlan(
        allocation=found,
        split=_split(job, lengths, found.generation),
        tokens=tokens,
        next_unit_gain=found.generation_seconds - generation(found.generation + job.unit),
        throughput=throughput,
        price=price,
        per_price=throughput / price,
        growth=_growth(job, lengths, found),
    )


def _split(job: RolloutJob, lengths: Counts, devices: int) -> Split | None:
    if not isinstance(job.generation, DecodeGeneration) or devices // job.generation.instance_devices < 2:
        return None
    long_length, regular_length = np.percentile(lengths, [90, 50]).tolist()
    instances, cap = devices // job.generation.instance_devices, job.generation.cap
    return skew.split(
        job.rows, instances, long_length, regular_length, cap, job.generation, job.long_share, job.objective
    )


def _growth(job: RolloutJob, lengths: Counts, found: Allocation) -> tuple[Growth, ...]:
    if job.growth is None:
        return ()
    last = max(1, job.growth.iterations - 1)

    def scaled(iteration: int) -> Counts:
        factor = 1 + (job.growth.factor - 1) * iteration / last if job.growth else 1.0
        return np.maximum(np.rint(lengths * factor), 1).astype(np.int64)

    decisions = allocation.grow(
        found.generation,
        job.unit,
        job.growth.iterations,
        lambda iteration, devices: generation_seconds(job, scaled(iteration), devices),
        lambda iteration: training_seconds(job, int(scaled(iteration).sum()), found.training),
        job.growth.most,
    )
    return tuple(decisions)


def table(job: RolloutJob, plan: RolloutPlan) -> str:
    """Plan as Markdown tables."""
    found = plan.allocation
    rows = [
        ["generation", f"{found.generation} devices", f"{found.generation_seconds:.1f} s"],
        ["training", f"{found.training} devices", f"{found.training_seconds:.1f} s"],
        ["an iteration, both at once", f"{job.rows} rows, {plan.tokens:,} tokens", f"{found.seconds:.1f} s"],
        ["throughput", "rows a second", f"{plan.throughput:.3g}"],
        ["cost of the machines", "", f"{plan.price:.4g}"],
        ["throughput over cost", "rows a second", f"{plan.per_price:.3g}"],
        ["delta' of one more unit", f"{job.unit} devices to generation", f"{plan.next_unit_gain:.1f} s"],
    ]
    if plan.split:
        parts = (
            ("long", plan.split.long_prompts, plan.split.long_instances, plan.split.long_seconds),
            ("regular", job.rows - plan.split.long_prompts, plan.split.regular_instances, plan.split.regular_seconds),
        )
        rows += [[f"{name} rows, by length", f"{many} on {n} instances", f"{s:.1f} s"] for name, many, n, s in parts]
    notes = ["By the times in the file: nothing was measured here."]
    tables = [Table(["rollout", "", ""], rows, notes)]
    if job.growth:
        devices = [found.generation, *(one.devices for one in plan.growth)]
        added = [one for one, before in zip(plan.growth, devices, strict=False) if one.devices > before]
        lines = [[f"{g.iteration}", f"{g.delta:.1f} s", f"{g.gain:.1f} s", f"{g.devices}"] for g in added]
        head = ["after iteration", "delta", "delta'", "devices of generation"]
        tables.append(Table(head, lines, [f"Lengths grow to {job.growth.factor:g}x."]))
    return render(tables, "md")


def as_json(plan: RolloutPlan) -> dict[str, Any]:
    """Plan as JSON values."""
    return asdict(plan) | {"seconds": plan.allocation.seconds}
