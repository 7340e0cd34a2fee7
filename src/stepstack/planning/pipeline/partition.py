"""Cut of a model into chunks and of microbatches into parts (PipeWeaver, arXiv 2504.14145, section on partitioning).

Chunks lie where they lie for all of the training, so that they are chosen once, for sample batches. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

from stepstack.planning.pipeline.graph import Chunk, PipelineBatch, PipelineGraph, PlanError, SubMicrobatch
from stepstack.planning.pipeline.profile import ModuleProfile, PipelineProfile
from stepstack.planning.pipeline.schedule import dual_queue
from stepstack.planning.pipeline.split import SplitChoice, seconds_in_order

EFFICIENCY = 0.95  # of the best size's, which a part must reach in the published rule
MOST_SEGMENTS = 4  # of a module, that the search tries


def chunks(profile: PipelineProfile, ranks: int, segments: Mapping[str, int]) -> tuple[Chunk, ...]:
    """Chunks of all modules: module i in ``ranks * segments[i]`` of consecutive layers, as equal as possible in seconds
    at its largest measured size, chunk j on rank j % ranks.

    PlanError for no rank, for a module without a number of segments, and for more chunks than layers.
    """
    if ranks < 1:
        raise PlanError(f"a pipeline of {ranks} ranks: give 1 or more")
    for name in segments:
        profile.module(name)
    cut: list[Chunk] = []
    for module in profile.modules:
        if (count := segments.get(module.name, 0)) < 1:
            raise PlanError(f"module {module.name} has {count} segments: give it 1 or more")
        if module.layers < ranks * count:
            raise PlanError(
                f"module {module.name} has {module.layers} layers for {ranks * count} chunks ({ranks} ranks times "
                f"{count} segments): at most {module.layers // ranks} segments fit"
            )
        begin = 0
        for number, layers in enumerate(_equal(module, ranks * count)):
            cut.append(Chunk(module.name, begin, begin + layers, number % ranks))
            begin += layers
    return tuple(cut)


def parts(batch: PipelineBatch, most: Mapping[str, int]) -> tuple[SubMicrobatch, ...]:
    """Sub-microbatches of a batch: the N items of a module in ceil(N / most) parts of consecutive items whose numbers
    differ by 1 at most. A module that ``most`` does not name goes in one part.

    PlanError for a part of no items, and for a microbatch without any item.
    """
    for name, count in most.items():
        if count < 1:
            raise PlanError(f"parts of {name} hold {count} items: give 1 or more")
    cut: list[SubMicrobatch] = []
    for number, microbatch in enumerate(batch):
        if not any(len(sizes) for sizes in microbatch.values()):
            raise PlanError(f"microbatch {number} has no item of any module: leave it out of the batch")
        for name, sizes in microbatch.items():
            count = math.ceil(len(sizes) / most.get(name, max(1, len(sizes))))
            for part in range(count):
                items = range(part * len(sizes) // count, (part + 1) * len(sizes) // count)
                cut.append(SubMicrobatch(number, name, tuple(items), float(sum(sizes[item] for item in items))))
    return tuple(cut)


def graph_of(
    profile: PipelineProfile,
    batch: PipelineBatch,
    cut: Sequence[Chunk],
    most: Mapping[str, int],
    split: frozenset[int] = frozenset(),
) -> PipelineGraph:
    """Graph of a batch over given chunks, see ``parts``. PlanError for a module that the profile lacks."""
    for name in sorted({*most, *(name for microbatch in batch for name in microbatch)}):
        profile.module(name)
    return PipelineGraph(profile.graph_modules(), tuple(cut), parts(batch, most), split)


def published(
    profile: PipelineProfile, batches: Sequence[PipelineBatch], ranks: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Segments of each module and items of its parts by the paper's rule, from sample batches.

    B_i is the smallest measured size at which a layer's size over its seconds (forward and backward) is at least 95% of
    the best, in items of the batches' mean size. K_i is floor(T_i / T_min) with the module's seconds T_i at B_i, less
    where that would be more chunks than layers. PlanError for a module of which no batch has an item.
    """
    most, seconds = {}, {}
    for module in profile.modules:
        item = mean_item(batches, module.name)
        points = zip(module.layer.sizes, module.layer.forward, module.layer.backward, strict=True)
        rates = {size: size / (forward + backward) for size, forward, backward in points if forward + backward}
        if not any(rates.values()):
            raise PlanError(f"layers of {module.name} take no time in the profile of {profile.model}: measure them")
        size = min(size for size, rate in rates.items() if size and rate >= EFFICIENCY * max(rates.values()))
        most[module.name] = max(1, math.ceil(size / item))
        seconds[module.name] = module_seconds(profile, module, most[module.name] * item)
    least = min(seconds.values())
    return {
        module.name: max(1, min(math.floor(seconds[module.name] / least), module.layers // ranks))
        for module in profile.modules
    }, most


def searched(
    profile: PipelineProfile,
    batches: Sequence[PipelineBatch],
    ranks: int,
    split: SplitChoice = "auto",
    cap: float | None = None,
    given: Mapping[str, int] | None = None,
) -> tuple[dict[str, int], dict[str, int]]:
    """Segments of each module and items of its parts with the least sum of seconds over sample batches, each planned in
    microbatch order.

    From the published rule on, one module after the other takes the best of 1 to 4 segments with parts of a quarter to
    twice the published size, or whole ones, until none changes; ties go to fewer segments and larger parts. ``given``:
    parts that are not chosen but taken, whole ones where it names no size. PlanError where one microbatch needs more
    than the cap in all of them.
    """
    segments, most = published(profile, batches, ranks)
    whole = {name: max(len(one.get(name, ())) for batch in batches for one in batch) for name in most}
    if given is not None:
        most = whole | dict(given)
    seconds: dict[tuple[tuple[int, int], ...], float] = {}

    def value(choice: Mapping[str, tuple[int, int]]) -> float:
        key = tuple(choice.values())
        if key not in seconds:
            cut = chunks(profile, ranks, {name: one for name, (one, _) in choice.items()})
            graphs = [
                graph_of(profile, batch, cut, {name: one for name, (_, one) in choice.items()}) for batch in batches
            ]
            seconds[key] = sum(seconds_in_order(graph, profile, split, cap) for graph in graphs)
        return seconds[key]

    choice = {name: (segments[name], most[name]) for name in segments}
    changed = True
    while changed:
        before = dict(choice)
        for module in profile.modules:
            name, sizes = module.name, {most[module.name]}
            if given is None:
                sizes = {min(whole[name], max(1, most[name] * n // 4)) for n in (1, 2, 4, 6, 8)} | {whole[name]}
            counts = range(1, 1 + min(MOST_SEGMENTS, module.layers // ranks))
            options = [choice | {name: one} for one in product(counts, sorted(sizes, reverse=True))]
            choice = min([choice, *options], key=value)
        changed = choice != before
    if math.isinf(value(choice)):
        cut = chunks(profile, ranks, segments)
        for batch in batches:
            dual_queue(graph_of(profile, batch, cut, most), profile, cap=cap)  # the error names rank and bytes
    return {name: one for name, (one, _) in choice.items()}, {name: one for name, (_, one) in choice.items()}


def mean_item(batches: Sequence[PipelineBatch], module: str) -> float:
    """Mean size of a module's items over batches. PlanError where they have none."""
    sizes = [size for batch in batches for microbatch in batch for size in microbatch.get(module, ())]
    if not sizes:
        raise PlanError(
            f"no sample batch has an item of {module}: take batches that have some, or give segments and parts"
        )
    return sum(sizes) / len(sizes)


def module_seconds(profile: PipelineProfile, module: ModuleProfile, size: float) -> float:
    """Seconds of a part of this size through all of a module, forward and backward."""
    cost = profile.cost(Chunk(module.name, 0, module.layers, 0), size)
    return cost.forward + cost.backward


def _equal(module: ModuleProfile, count: int) -> list[int]:
    """Layers of each chunk, such that the slowest is as fast as can be, and the others are as equal as can be. The
    ends of the module cost what so many layers cost."""
    if count == 1:
        return [module.layers]
    layer, entry, exit = (
        sum(cost[:2]) if (cost := one and one.at(module.layer.sizes[-1])) else 0.0
        for one in (module.layer, module.entry, module.exit)
    )
    best: tuple[tuple[float, float], list[int]] | None = None
    most = module.layers - count + 2  # of the first and the last chunk together
    for first, last in product(range(1, most), repeat=2):
        inner = module.layers - first - last
        if inner < count - 2 or (count == 2 and inner):
            continue
        few, more = divmod(inner, max(1, count - 2))
        layers = [first, *(few + (at < more) for at in range(count - 2)), last]
        costs = [layer * n for n in layers]
        costs[0] += entry
        costs[-1] += exit
        value = max(costs), sum(cost * cost for cost in costs)
        if best is None or value < best[0]:
            best = value, layers
    assert best is not None
    return best[1]
