"""File of `stepstack plan pipeline`, the options of a planner, and the plans that they lead to. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from stepstack import config
from stepstack.bounds import Text
from stepstack.config import Strict
from stepstack.planning.pipeline import baselines, static
from stepstack.planning.pipeline.bounds import lower_bound
from stepstack.planning.pipeline.graph import Chunk, PipelineBatch, PipelinePlan
from stepstack.planning.pipeline.partition import chunks, graph_of, published, searched
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.recompute import search_with_recompute
from stepstack.planning.pipeline.schedule import dual_queue
from stepstack.planning.pipeline.search import LocalSearch, SearchOptions, search
from stepstack.planning.pipeline.split import SplitChoice, split_graph
from stepstack.planning.pipeline.timeline import Timeline, timeline
from stepstack.report.formats import Table, render

PLANNED = "planned"  # name of the job's own plan beside the baselines


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineOptions(Strict):
    """How a model is cut and batches are planned."""

    segments: Literal["searched", "published"] | Mapping[str, PositiveInt] = "searched"
    """Chunks of each module on a rank: by search over sample batches, by the paper's rule, or given by module."""
    parts: Mapping[str, PositiveInt] | None = None
    """Most items that go through a module together, by module, one part where a module is left out; null: chosen as the
    segments are, by the paper's rule where these are given."""
    priorities: SearchOptions = LocalSearch()
    """Order in which microbatches and their modules are preferred."""
    split: SplitChoice = "auto"
    """Gradients of inputs and weights apart, so that the latter fill idle time: where it makes the batch faster, never,
    or always."""
    cap: PositiveFloat | None = None
    """Bytes of activations that no rank may exceed; null: any."""
    recompute: bool = False
    """Under a cap, recompute layers in the backward pass where that is faster than waiting for bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnItems(Strict):
    """Items of a module in a microbatch."""

    low: NonNegativeInt
    """Least number of items."""
    high: NonNegativeInt
    """Largest number of items; all numbers between are equally likely."""
    size: PositiveFloat
    """Size of an item in the unit of the profile, such as tokens."""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is more than high = {self.high}: exchange them")


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnBatches(Strict):
    """Batches whose microbatches have numbers of items that are drawn."""

    type: Literal["drawn"] = "drawn"
    """Choice of the batches: drawn."""
    batches: PositiveInt = 1
    """Number of batches."""
    microbatches: PositiveInt
    """Microbatches of each."""
    items: Annotated[Mapping[str, DrawnItems], Field(min_length=1)]
    """Items of a microbatch, by module."""
    seed: NonNegativeInt = 0
    """Seed of the draw."""

    def draw(self) -> list[PipelineBatch]:
        """The batches."""
        random = Random(self.seed)
        return [
            [
                {name: [item.size] * random.randint(item.low, item.high) for name, item in self.items.items()}
                for _ in range(self.microbatches)
            ]
            for _ in range(self.batches)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedBatches(Strict):
    """Batches that are written down."""

    type: Literal["list"] = "list"
    """Choice of the batches: a list."""
    batches: Annotated[
        tuple[Annotated[tuple[Mapping[str, tuple[PositiveFloat, ...]], ...], Field(min_length=1)], ...],
        Field(min_length=1),
    ]
    """Microbatches of each batch: sizes of the items of each module."""

    def draw(self) -> list[PipelineBatch]:
        """The batches."""
        return list(self.batches)


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineJob(Strict):
    """Model, ranks and batches of which `stepstack plan pipeline` makes plans."""

    profile: Text
    """Path of a profile from the current folder: one of configs/plans, or what `stepstack profile pipeline` wrote."""
    ranks: PositiveInt
    """Ranks of the pipeline."""
    batches: Annotated[DrawnBatches | ListedBatches, Field(discriminator="type")]
    """Batches to plan, which are the samples for the cut as well."""
    options: PipelineOptions = PipelineOptions()
    """Settings of the planner."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.profile,)


@dataclass(frozen=True, slots=True)
class PipelineCut:
    """Chunks of a model, which stay for all of the training, and the most items of a part, by module."""

    chunks: tuple[Chunk, ...]
    segments: Mapping[str, int]
    most: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PipelineOutcome:
    """Cut of a model and, for each batch, the lower bound in seconds and the plans by name with their times. ``left``:
    why each baseline that is not there was left out."""

    cut: PipelineCut
    bounds: tuple[float, ...]
    timelines: tuple[Mapping[str, Timeline], ...]
    left: tuple[str, ...]

    @property
    def plans(self) -> tuple[PipelinePlan, ...]:
        """The job's own plan of each batch."""
        return tuple(lines[PLANNED].plan for lines in self.timelines)


def choose_cut(
    profile: PipelineProfile, batches: list[PipelineBatch], ranks: int, options: PipelineOptions
) -> PipelineCut:
    """Cut of a model for batches like these. PlanError where the model or the batches allow none."""
    match options.segments:
        case "searched":
            cap = None if options.recompute else options.cap  # recomputing may keep one that nothing else can
            segments, most = searched(profile, batches, ranks, options.split, cap, options.parts)
        case "published":
            segments, most = published(profile, batches, ranks)
        case given:
            segments, most = dict(given), {} if options.parts is not None else published(profile, batches, ranks)[1]
    most = dict(options.parts) if options.parts is not None else most
    return PipelineCut(chunks(profile, ranks, segments), segments, most)


def plan_batch(
    profile: PipelineProfile, batch: PipelineBatch, cut: PipelineCut, options: PipelineOptions
) -> PipelinePlan:
    """Plan of a batch, which depends on these arguments alone. PlanError for a batch that the model cannot take, and
    where one microbatch needs more than the cap."""
    graph = graph_of(profile, batch, cut.chunks, cut.most)
    graph = split_graph(graph, profile, options.split, options.cap)
    if options.recompute and options.cap is not None:
        return search_with_recompute(graph, profile, options.priorities, options.cap)
    return search(graph, profile, options.priorities, options.cap)


def make_plan(job: PipelineJob) -> PipelineOutcome:
    """Plans of the job's batches, and every baseline beside them. PlanError as ``plan_batch``."""
    profile = config.read(PipelineProfile, Path(job.profile))
    batches = job.batches.draw()
    cut = choose_cut(profile, batches, job.ranks, job.options)
    bounds, timelines, left = [], [], list[str]()
    for batch in batches:
        plan = plan_batch(profile, batch, cut, job.options)
        bounds.append(lower_bound(plan.graph, profile))
        plans, missing = _rivals(profile, batch, job, plan, batches)
        timelines.append({name: timeline(one, profile) for name, one in ({PLANNED: plan} | plans).items()})
        left += [why for why in missing if why not in left]
    return PipelineOutcome(cut, tuple(bounds), tuple(timelines), tuple(left))


def _rivals(
    profile: PipelineProfile, batch: PipelineBatch, job: PipelineJob, plan: PipelinePlan, sample: list[PipelineBatch]
) -> tuple[dict[str, PipelinePlan], list[str]]:
    """Baselines of a batch by name, and why others are left out. None of them keeps the cap."""
    graph, cap, ranks = plan.graph, job.options.cap, job.ranks
    found: dict[str, PipelinePlan] = {
        "microbatch order": dual_queue(graph, profile, cap=cap),
        "coarse, encoders first (Optimus)": baselines.coarse(graph, profile, cap),
        "searched once for the mean (nnScaler)": baselines.searched_once(
            profile, batch, graph.chunks, sample, job.options.priorities, graph.split
        ),
    }
    plans = static.family(profile, batch, ranks, sample=sample)
    found |= plans | {f"{name}, W filled in": baselines.filled(plan, profile) for name, plan in plans.items()}
    left = static.stages(profile, batch, ranks)[1]
    if any(module.layer_parameters for module in profile.modules):
        balanced = static.family(profile, batch, ranks, "parameters", sample)
        found |= {f"{name}, parameter-balanced": plan for name, plan in balanced.items()}
    else:
        left.append("parameter-balanced 1F1B: the profile has no layer_parameters")
    found |= static.breadth_first(profile, batch, ranks, sample)
    found |= static.zero_bubble(profile, batch, ranks, sample)
    return found, left


def table(outcome: PipelineOutcome) -> str:
    """Plans of all batches as a Markdown table."""
    bound = sum(outcome.bounds)
    mine = sum(lines[PLANNED].makespan for lines in outcome.timelines)
    rows = []
    for name in (name for name in outcome.timelines[0] if all(name in lines for lines in outcome.timelines)):
        lines = [one[name] for one in outcome.timelines]
        seconds = sum(line.makespan for line in lines)
        idle = 1 - sum(sum(line.busy) for line in lines) / sum(len(line.busy) * line.makespan for line in lines)
        peak = max(max(line.peak_bytes) for line in lines)
        over = f"{seconds / mine:.2f}x", f"{seconds / bound - 1:.1%}"
        rows.append([name, f"{seconds:.3f} s", over[0], f"{idle:.1%}", f"{peak / 1e9:.2f} GB", over[1]])
    cut, chosen = outcome.cut, []
    for name, count in cut.segments.items():
        most = cut.most.get(name)
        chosen.append(f"{name} in {count} chunks a rank, {'whole' if most is None else f'at most {most} items a part'}")
    plans = outcome.plans
    split = sum(len(plan.graph.split) for plan in plans) / sum(len(plan.graph.chunks) for plan in plans)
    again = sum(layers for plan in plans for _, _, layers in plan.recompute)
    notes = [
        f"Sum of {len(plans)} batches, simulated from the profile; lower bound {bound:.3f} s. "
        f"Cut: {'; '.join(chosen)}. Gradients of weights apart in {split:.0%} of the chunks. "
        "Static baselines keep no cap.",
        *([f"{again} layers are recomputed, each for a part."] if again else []),
        *([f"Left out: {'; '.join(outcome.left)}."] if outcome.left else []),
    ]
    head = ["plan", "makespan", "over planned", "bubble", "peak memory", "over the bound"]
    return render([Table(head, rows, notes)], "md")


def as_json(outcome: PipelineOutcome) -> dict[str, Any]:
    """Cut, and each batch's plans, as JSON values: seconds, share of idle time, bytes of each rank; of the job's own
    plan also the passes of each rank and the recomputed layers, as (chunk, part, layers)."""
    return {
        "segments": dict(outcome.cut.segments),
        "parts": dict(outcome.cut.most),
        "chunks": [[chunk.module, chunk.begin, chunk.end, chunk.rank] for chunk in outcome.cut.chunks],
        "left_out": list(outcome.left),
        "batches": [
            {
                "lower_bound": bound,
                "digest": lines[PLANNED].plan.digest,
                "recompute": [list(one) for one in lines[PLANNED].plan.recompute],
                "order": [[str(action) for action in order] for order in lines[PLANNED].plan.order],
                "plans": {
                    name: {"makespan": line.makespan, "bubble": line.bubble, "peak_bytes": list(line.peak_bytes)}
                    for name, line in lines.items()
                },
            }
            for bound, lines in zip(outcome.bounds, outcome.timelines, strict=True)
        ],
    }
