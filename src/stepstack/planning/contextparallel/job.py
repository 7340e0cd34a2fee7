"""Planning job read from a file, and its plan beside simpler alternatives. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from stepstack.bounds import Fraction
from stepstack.config import Strict
from stepstack.planning.contextparallel import plan
from stepstack.planning.contextparallel.grid import LayerPlan
from stepstack.planning.contextparallel.plan import Plan
from stepstack.planning.contextparallel.problem import BlockLayout, Cluster, Layer, PlanOptions, Profile
from stepstack.report.formats import Table, render


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextJob(Strict):
    """``length``: tokens of a sample. ``block``: tokens of a block of queries or keys. ``sparsity``: a row of heads for
    each layer, as a profile of a run has it."""

    length: PositiveInt
    block: PositiveInt
    head_dim: PositiveInt
    element_bytes: PositiveInt = 2
    sparsity: Annotated[tuple[tuple[Fraction, ...], ...], Field(min_length=1)]
    cluster: Cluster
    options: PlanOptions = PlanOptions()

    def __post_init__(self) -> None:
        counts = {len(row) for row in self.sparsity}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                f"sparsity: every layer must have the same number of heads, not {sorted(counts)}: complete the rows"
            )

    @property
    def profile(self) -> Profile:
        """Profile of the job: an even cut of the sequence with the given sparsity of each layer's heads."""
        blocks, rest = divmod(self.length, self.block)
        sizes = (self.block,) * blocks + ((rest,) if rest else ())
        layout = BlockLayout(sizes, sizes, self.cluster.ranks)
        layers = tuple(Layer.from_sparsity(row, layout) for row in self.sparsity)
        return Profile(layout=layout, head_dim=self.head_dim, layers=layers, element_bytes=self.element_bytes)


def make_plan(job: ContextJob, watch: Callable[[range], Iterable[int]] = iter) -> Plan:
    """Plan of the job. ``watch`` wraps the layers' numbers, for example in a progress bar."""
    return plan.plan(job.profile, job.cluster, job.options, watch)


def alternatives(job: ContextJob, layer: int) -> dict[str, LayerPlan]:
    """Costs of one layer without the planner: heads by number over all ranks, and no exchange of heads at all."""
    profile, heads, ranks = job.profile, len(job.sparsity[0]), job.cluster.ranks
    counts = {"head-wise, by number": ranks, "sequence-wise": 1}
    rows = {name: plan.in_order(heads, count) for name, count in counts.items() if count <= heads}
    return {name: plan.cost(profile, layer, job.cluster, job.options, "hcp", own) for name, own in rows.items()}


def table(job: ContextJob, plan: Plan) -> str:
    """Plan as a Markdown table, one row a layer, with times of the slowest rank in milliseconds."""
    others = [alternatives(job, number) for number in range(len(plan.layers))]
    rows = []
    for number, layer in enumerate(plan.layers):
        slowest = max(layer.ranks, key=lambda rank: rank.seconds)
        times = [slowest.comm, slowest.comp, layer.seconds, *(other.seconds for other in others[number].values())]
        shape = f"{layer.hcp} x {layer.scp}" + (f", {layer.inner} near" if layer.hcp > 1 and layer.scp > 1 else "")
        memory = max(rank.memory for rank in layer.ranks) / 2**30
        heads = " ".join(str(len(row)) for row in layer.heads)
        milliseconds = [f"{1e3 * second:.3f}" for second in times]
        rows.append([str(number), shape, heads, *milliseconds, f"{memory:.2f}", f"{100 * layer.gap:.1f}"])
    names = [f"{name} ms" for name in others[0]]
    head = ["layer", "hcp x scp", "heads of each row", "comm ms", "comp ms", "total ms", *names, "GiB", "gap %"]
    note = (
        f"{1e3 * plan.seconds:.3f} ms in all, by the times in the file: nothing was measured here. gap: the most that "
        "another placement of heads on this grid could save."
    )
    return render([Table(head, rows, [note])], "md")


def as_json(job: ContextJob, plan: Plan) -> dict[str, Any]:
    """Plan as JSON values, with the seconds of each layer and of its alternatives."""
    layers = [
        {**asdict(layer), "seconds": layer.seconds, "gap": layer.gap}
        | {"alternatives": {name: other.seconds for name, other in alternatives(job, number).items()}}
        for number, layer in enumerate(plan.layers)
    ]
    shards = [plan.layout.tokens("queries", rank) for rank in range(plan.layout.ranks)]
    tokens = [(shard.start, shard.stop) for shard in shards]
    return {"seconds": plan.seconds, "digest": plan.digest, "heads": plan.heads, "tokens": tokens, "layers": layers}
