"""What static pipelines come to at their best on a batch: the rivals of plans that know it. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from stepstack.planning.pipeline import baselines
from stepstack.planning.pipeline.baselines import Balance, Chain
from stepstack.planning.pipeline.graph import Action, PipelineBatch, PipelinePlan
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.timeline import costs_of

Order = Callable[[Chain], PipelinePlan]


def family(
    profile: PipelineProfile,
    batch: PipelineBatch,
    ranks: int,
    balance: Balance = "time",
    sample: Sequence[PipelineBatch] = (),
    most: int = 4,
) -> dict[str, PipelinePlan]:
    """1F1B with 1, 2, 4 and so on up to ``most`` stages on a rank, by name; those for which the model has too few
    layers, or the batch a number of microbatches that cannot be dealt in rounds, are left out."""
    layers = sum(module.layers for module in profile.modules)
    found = {}
    for local in (2**power for power in range(most.bit_length())):
        if layers < ranks * local or (local > 1 and len(batch) % max(1, len(batch) // ranks)):
            continue
        chain = baselines.static_chain(profile, batch, ranks, local=local, balance=balance, sample=sample)
        order = baselines.one_f_one_b if local == 1 else baselines.interleaved
        found["1F1B" if local == 1 else f"interleaved 1F1B, {local} stages"] = order(chain)
    return found


def filled(plan: PipelinePlan, profile: PipelineProfile) -> PipelinePlan:
    """A static order with backward passes split, whose idle time is filled with gradients of weights: each waits for a
    gap that it fits into, or for the end. No order of F and I that stays as it is gains more from a split."""
    graph = replace(plan.graph, split=frozenset(range(len(plan.graph.chunks))))
    costs, halves = costs_of(graph, profile), tuple(tuple(map(_input, actions)) for actions in plan.order)
    ends: dict[Action, float] = {}
    free = [0.0] * len(halves)
    waiting: list[list[Action]] = [[] for _ in halves]
    order: list[list[Action]] = [[] for _ in halves]
    for action in _in_time(PipelinePlan(graph, halves)):
        rank, cost = graph.rank_of(action), costs[action.chunk, action.part]
        come = max((ends[need] + profile.transfer(graph, need, action) for need in graph.needs(action)), default=0.0)
        for weight in list(waiting[rank]):
            seconds = costs[weight.chunk, weight.part].weight
            if free[rank] + seconds <= come:
                waiting[rank].remove(weight)
                order[rank].append(weight)
                free[rank] += seconds
        free[rank] = ends[action] = max(free[rank], come) + cost.seconds(action.kind)
        order[rank].append(action)
        if action.kind == "I":
            waiting[rank].append(Action("W", action.chunk, action.part))
    return PipelinePlan(graph, tuple((*one, *rest) for one, rest in zip(order, waiting, strict=True)))


def _input(action: Action) -> Action:
    return action._replace(kind="I") if action.kind == "B" else action


def _in_time(plan: PipelinePlan) -> list[Action]:
    """Passes of a plan that lacks W, none before what it needs."""
    unsplit = replace(plan.graph, split=frozenset())
    whole = tuple(tuple(a._replace(kind="B") if a.kind == "I" else a for a in actions) for actions in plan.order)
    return [_input(action) for action in PipelinePlan(unsplit, whole).in_time()]


def best(plans: Mapping[str, PipelinePlan], seconds: Callable[[PipelinePlan], float]) -> tuple[str, float]:
    """Name and seconds of the fastest plan."""
    return min(((name, seconds(plan)) for name, plan in plans.items()), key=lambda one: one[1])
