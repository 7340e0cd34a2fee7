"""Pipelines whose order does not depend on the batch, and simpler planners, on the same costs. No torch.

A static pipeline takes all modules as one chain of layers, which is cut into stages: a stage may end one module and
begin the next, as chunks on the same rank. Each microbatch is one part of each module; a stage of which a microbatch
has no items does nothing then. Orders of one-module chains are those of torch.distributed.pipelining.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from stepstack.planning.pipeline.graph import Action, Chunk, Kind, PipelineBatch, PipelineGraph, PipelinePlan, PlanError
from stepstack.planning.pipeline.partition import graph_of
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.schedule import Passes
from stepstack.planning.pipeline.search import LocalSearch, SearchOptions, coarse_order, search
from stepstack.planning.pipeline.timeline import costs_of, timeline

Balance = Literal["time", "parameters"]
Placement = Literal["loop", "v"]


@dataclass(frozen=True, slots=True)
class Chain:
    """A graph whose chunks are the stages of one chain, in its order; ``stages``: numbers of the chunks of each."""

    graph: PipelineGraph
    stages: tuple[tuple[int, ...], ...]

    @property
    def local(self) -> int:
        """Stages of each rank."""
        return len(self.stages) // self.graph.ranks

    def rank(self, stage: int) -> int:
        """The rank on which a stage lies."""
        return self.graph.chunks[self.stages[stage][0]].rank


class Step(NamedTuple):
    """A pass of a whole microbatch through a stage."""

    kind: Kind
    stage: int
    microbatch: int


def static_chain(
    profile: PipelineProfile,
    batch: PipelineBatch,
    ranks: int,
    *,
    local: int = 1,
    balance: Balance = "time",
    placement: Placement = "loop",
    sample: Sequence[PipelineBatch] = (),
) -> Chain:
    """Chain of a batch in ``ranks * local`` stages of consecutive layers whose largest is as small as can be.

    ``balance``: by seconds of a mean microbatch of ``sample`` (the batch itself where there is none), or by parameters.
    ``placement``: stage s on rank s % ranks, or in a V, which takes ``local`` 2. PlanError for fewer layers than
    stages, and for a balance by parameters of a profile that has none.
    """
    count = ranks * local
    if placement == "v" and local != 2:
        raise PlanError(f"a V has 2 stages on a rank, not {local}: give local=2")
    weights = _weights(profile, sample or (batch,), balance)
    if len(weights) < count:
        raise PlanError(f"the model has {len(weights)} layers for {count} stages: take fewer ranks or stages on a rank")
    ends = _cut([weight for _, weight in weights], count)
    cut: list[Chunk] = []
    stages: list[tuple[int, ...]] = []
    for stage, (begin, end) in enumerate(zip((0, *ends), ends, strict=False)):
        rank = min(stage, count - 1 - stage) if placement == "v" else stage % ranks
        names = [name for name, _ in weights[begin:end]]
        first = len(cut)
        for name in dict.fromkeys(names):
            at = max((chunk.end for chunk in cut if chunk.module == name), default=0)
            cut.append(Chunk(name, at, at + names.count(name), rank))
        stages.append(tuple(range(first, len(cut))))
    return Chain(graph_of(profile, batch, cut, {}), tuple(stages))


# -- orders ------------------------------------------------------------------------------------------------------


def gpipe(chain: Chain) -> PipelinePlan:
    """All forward passes, then all backward passes."""
    _one_stage(chain, "GPipe")
    many = range(chain.graph.microbatches)
    return _plan(
        chain, [[Step(kind, rank, m) for kind in ("F", "B") for m in many] for rank in range(chain.graph.ranks)]
    )


def one_f_one_b(chain: Chain) -> PipelinePlan:
    """One forward and one backward pass in turn, once as many microbatches are on the way as stages follow."""
    _one_stage(chain, "1F1B")
    return _plan(chain, [_in_turn(chain, rank, 1) for rank in range(chain.graph.ranks)])


def interleaved(chain: Chain) -> PipelinePlan:
    """1F1B over some stages on a rank (arXiv 2104.04473), with rounds of as many microbatches as ranks, or more.

    PlanError for microbatches that do not divide by the rounds.
    """
    return _plan(chain, [_in_turn(chain, rank, 2) for rank in range(chain.graph.ranks)])


def zb_h1(chain: Chain) -> PipelinePlan:
    """1F1B whose gradients of weights come later, so that no rank keeps more than 1F1B does (arXiv 2401.10241)."""
    _one_stage(chain, "ZB-H1")
    return _plan(_apart(chain), [_in_turn(chain, rank, 1, delay=rank) for rank in range(chain.graph.ranks)])


def looped_bfs(chain: Chain) -> PipelinePlan:
    """All microbatches through a rank's first stage, then through its next one; back in reverse (arXiv 2211.05953)."""
    many = range(chain.graph.microbatches)
    orders = []
    for rank in range(chain.graph.ranks):
        mine = [stage for stage in range(len(chain.stages)) if chain.rank(stage) == rank]
        forward = [Step("F", stage, m) for stage in mine for m in many]
        orders.append([*forward, *(Step("B", stage, m) for stage in reversed(mine) for m in reversed(many))])
    return _plan(chain, orders)


def zb_v(chain: Chain) -> PipelinePlan:
    """Two stages a rank in a V, input and weight gradients apart (arXiv 2401.10241, section 6)."""
    ranks, many = chain.graph.ranks, chain.graph.microbatches
    if len(chain.stages) != 2 * ranks or chain.rank(ranks) != ranks - 1:
        raise PlanError("ZB-V takes two stages on each rank in a V: make the chain with local=2, placement='v'")
    return _plan(
        _apart(chain), [[s for s in _v_steps(rank, ranks, many) if s.microbatch < many] for rank in range(ranks)]
    )


def coarse(graph: PipelineGraph, profile: PipelineProfile, cap: float | None = None) -> PipelinePlan:
    """Dual queue with all encoders before what reads them (as Optimus does)."""
    passes = Passes.of(graph, profile)
    return passes.plan(passes.schedule(coarse_order(passes), cap))


def searched_once(
    profile: PipelineProfile,
    batch: PipelineBatch,
    cut: Sequence[Chunk],
    sample: Sequence[PipelineBatch] = (),
    options: SearchOptions = LocalSearch(),  # noqa: B008
    split: frozenset[int] = frozenset(),
) -> PipelinePlan:
    """One order for all batches, searched for the mean microbatch of ``sample`` (as nnScaler does), for this batch.

    The order is that of whole microbatches, so that it is one of any batch with as many of them. PlanError for items of
    a module that the sample has none of.
    """
    means = {name: [size] for name, size in _mean_sizes(profile, sample or (batch,)).items() if size}
    if unseen := {name for microbatch in batch for name, sizes in microbatch.items() if len(sizes)} - set(means):
        raise PlanError(f"no sample batch has an item of {min(unseen)}: take batches that have some")
    searched = search(graph_of(profile, [means] * len(batch), cut, {}, split), profile, options)
    graph, before = graph_of(profile, batch, cut, {}, split), searched.graph
    orders = [
        [Step(kind, chunk, before.parts[part].microbatch) for kind, chunk, part in order] for order in searched.order
    ]
    return _plan(Chain(graph, tuple((chunk,) for chunk in range(len(cut)))), orders)


def filled(plan: PipelinePlan, profile: PipelineProfile) -> PipelinePlan:
    """A plan with input and weight gradients apart in all chunks, W filled into the time in which ranks wait.

    The order of the other passes stays. Tries W passes that end before the next pass can begin, and ones that make it
    wait for half of them or for all but a moment, and returns the fastest.
    """
    graph = replace(plan.graph, split=frozenset(range(len(plan.graph.chunks))))
    orders = [[a for a in order if a.kind != "W"] for order in plan.order]
    apart = PipelinePlan(
        graph, tuple(tuple(a if a.kind == "F" else graph.backward(*a[1:]) for a in order) for order in orders)
    )
    plans = [_fill(apart, profile, share) for share in (1.0, 0.5, 0.0)]
    return min(plans, key=lambda one: timeline(one, profile).makespan)


def _fill(apart: PipelinePlan, profile: PipelineProfile, share: float) -> PipelinePlan:
    """W where a rank would wait for more than ``share`` of it. ``apart`` has no W yet."""
    graph, costs = apart.graph, costs_of(apart.graph, profile)
    free, ends = [0.0] * len(apart.order), dict[Action, float]()
    orders: list[list[Action]] = [[] for _ in free]
    waiting: list[deque[Action]] = [deque() for _ in free]
    for action in apart.in_time():
        rank, cost = graph.rank_of(action), costs[action.chunk, action.part]
        come = max((ends[need] + profile.transfer(graph, need, action) for need in graph.needs(action)), default=0.0)
        while waiting[rank]:
            seconds = costs[waiting[rank][0][1:]].weight
            if come - free[rank] < share * seconds or come <= free[rank]:
                break
            free[rank] += seconds
            orders[rank].append(waiting[rank].popleft())
        free[rank] = ends[action] = max(free[rank], come) + cost.seconds(action.kind)
        orders[rank].append(action)
        if action.kind == "I":
            waiting[rank].append(Action("W", action.chunk, action.part))
    return PipelinePlan(graph, tuple((*order, *rest) for order, rest in zip(orders, waiting, strict=True)))


# -- steps of a rank ---------------------------------------------------------------------------------------------


def _in_turn(chain: Chain, rank: int, hops: int, delay: int | None = None) -> list[Step]:
    """Steps of 1F1B: ``hops`` forward passes more before the first backward pass for each rank that follows. ``delay``:
    backward passes until the first one's gradients of weights; None: they are not apart."""
    ranks, local, many = chain.graph.ranks, chain.local, chain.graph.microbatches
    rounds = max(1, many // ranks) if local > 1 else 1
    if many % rounds:
        raise PlanError(
            f"interleaved 1F1B deals {many} microbatches in {rounds} equal rounds: take a multiple of {rounds}"
        )
    each = many // rounds
    warmup = min((local - 1) * each + hops * (ranks - 1 - rank), local * many)
    places = [divmod(number, each * local) for number in range(local * many)]  # round, place in the round
    stages = [(at // each * ranks + rank, turn * each + at % each) for turn, at in places]
    back = [((local - 1 - at // each) * ranks + rank, turn * each + at % each) for turn, at in places]
    steps = [Step("F", *one) for one in stages[:warmup]]
    for number, one in enumerate(back):
        steps += [Step("F", *next_) for next_ in stages[warmup + number : warmup + number + 1]]
        steps.append(Step("B", *one))
        if delay is not None and number >= delay:
            steps.append(Step("W", *back[number - delay]))
    return [*steps, *(Step("W", *one) for one in (back[max(0, len(back) - delay) :] if delay else ()))]


def _v_steps(rank: int, ranks: int, many: int) -> Iterator[Step]:
    """Steps of ZB-V for at least 2 * ranks - 1 microbatches."""
    many = max(2 * ranks - 1, many)
    at: dict[tuple[Kind, int], int] = {}

    def step(kind: Kind, side: int) -> Step:
        number = at.get((kind, side), 0)
        at[kind, side] = number + 1
        return Step(kind, (rank, 2 * ranks - 1 - rank)[side], number)

    for _ in range(2 * (ranks - rank) - 1):
        yield step("F", 0)
    for _ in range(rank):
        yield step("F", 1)
        yield step("F", 0)
    for _ in range(ranks - rank):
        yield from (step("F", 1), step("B", 1), step("W", 1))
    while at.get(("F", 1), 0) < at["F", 0] or at["F", 0] < many:
        if at["F", 0] < many:
            yield step("F", 0)
        yield from (step("B", 0), step("W", 0), step("F", 1), step("B", 1), step("W", 1))
    for _ in range(rank):
        yield step("B", 0)
        yield step("B", 1)
    for _ in range(ranks - rank):
        yield step("B", 0)
        yield step("W", 0)
    for side in (1, 0):
        while at.get(("W", side), 0) < at["B", side]:
            yield step("W", side)


def _plan(chain: Chain, orders: Sequence[Sequence[Step]]) -> PipelinePlan:
    """Steps as passes: those of a stage's chunks in the order of its layers, or in reverse."""
    graph = chain.graph
    found: list[tuple[Action, ...]] = []
    for steps in orders:
        actions: list[Action] = []
        for kind, stage, microbatch in steps:
            for chunk in chain.stages[stage] if kind == "F" else reversed(chain.stages[stage]):
                whole = kind if kind in "FW" else graph.backward(chunk, 0).kind
                parts = graph.parts_of(microbatch, graph.chunks[chunk].module)
                actions += [Action(whole, chunk, part) for part in parts if kind != "W" or chunk in graph.split]
        found.append(tuple(actions))
    return PipelinePlan(graph, tuple(found))


def _apart(chain: Chain) -> Chain:
    """The chain with input and weight gradients apart in all chunks."""
    return replace(chain, graph=replace(chain.graph, split=frozenset(range(len(chain.graph.chunks)))))


def _one_stage(chain: Chain, name: str) -> None:
    if chain.local != 1:
        raise PlanError(f"{name} has one stage on a rank, not {chain.local}: make the chain with local=1")


# -- cut of a chain ----------------------------------------------------------------------------------------------


def _mean_sizes(profile: PipelineProfile, sample: Sequence[PipelineBatch]) -> dict[str, float]:
    """Mean size of each module's items in a microbatch, over all microbatches."""
    microbatches = [microbatch for batch in sample for microbatch in batch]
    return {
        module.name: sum(float(sum(one.get(module.name, ()))) for one in microbatches) / len(microbatches)
        for module in profile.modules
    }


def _weights(profile: PipelineProfile, sample: Sequence[PipelineBatch], balance: Balance) -> list[tuple[str, float]]:
    """Each layer of the chain, by its module, with its weight."""
    if balance == "parameters":
        if not any(module.layer_parameters for module in profile.modules):
            raise PlanError(f"the profile of {profile.model} has no layer_parameters to balance stages by: add them")
        return [(module.name, module.layer_parameters) for module in profile.modules for _ in range(module.layers)]
    sizes = _mean_sizes(profile, sample)
    weights = []
    for module in profile.modules:
        for layer in range(module.layers):
            cost = profile.cost(Chunk(module.name, layer, layer + 1, 0), sizes[module.name])
            weights.append((module.name, cost.forward + cost.backward))
    return weights


def _cut(weights: Sequence[float], count: int) -> tuple[int, ...]:
    """Ends of ``count`` runs of the weights: the heaviest run is as light as can be, and of those cuts the one with the
    least sum of squares."""
    many = len(weights)
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    runs = np.where(np.triu(np.ones((many + 1, many + 1), bool), 1), sums[None, :] - sums[:, None], np.inf)
    least = np.full(many + 1, np.inf)
    least[0] = 0.0
    for _ in range(count):
        least = np.maximum(least[:, None], runs).min(0)
    squares = np.where(runs <= least[many] * (1 + 1e-9), runs**2, np.inf)
    best = np.full(many + 1, np.inf)
    best[0] = 0.0
    froms = []
    for _ in range(count):
        total = best[:, None] + squares
        froms.append(total.argmin(0))
        best = total.min(0)
    ends = [many]
    for back in reversed(froms[1:]):
        ends.append(int(back[ends[-1]]))
    return tuple(reversed(ends))
