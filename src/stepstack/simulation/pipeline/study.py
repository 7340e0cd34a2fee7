"""Studies of `stepstack sim pipeline`: plans beside static pipelines on the same costs. No torch.

Each study returns numbers, and a function beside it their table. Seconds are simulated.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stepstack.planning.pipeline import baselines, partition, static
from stepstack.planning.pipeline.bounds import lower_bound
from stepstack.planning.pipeline.graph import Chunk, PipelineBatch, PipelineGraph, PipelinePlan
from stepstack.planning.pipeline.memory import needs
from stepstack.planning.pipeline.profile import ModuleProfile, PipelineProfile
from stepstack.planning.pipeline.recompute import search_with_recompute
from stepstack.planning.pipeline.schedule import Passes, dual_queue
from stepstack.planning.pipeline.search import LocalSearch, MicrobatchOrder, SearchOptions, search
from stepstack.planning.pipeline.timeline import timeline
from stepstack.report.formats import Table

# Least and most pictures of a microbatch, batch by batch: a data stream whose image density drifts.
DRIFT = ((0, 8), (0, 32), (24, 48), (0, 4), (8, 24), (40, 48), (0, 16), (0, 48))
MIXES = {"text only": (0, 0), "0 to 8": (0, 8), "16 in each": (16, 16), "24 to 48": (24, 48), "0 to 48": (0, 48)}
SEED = 11
CAP = 5e10  # bytes of activations on a GPU of 80 GB
SHARES = (1.0, 0.9, 0.7, 0.5, 0.35)  # of the peak without a cap

STATIC, FILLED = "best 1F1B family", "best static, W filled in"
PARAMETERS = "interleaved 1F1B, balanced by parameters"
ORDER, COARSE, SEARCHED, ONCE = "microbatch order", "encoders first (Optimus)", "searched", "searched once (nnScaler)"
BOUND = "lower bound"
CAPPED = ", in the memory of interleaved 1F1B"
Seconds = dict[str, list[float]]  # of each batch, by plan


@dataclass(frozen=True, slots=True)
class ModelCut:
    """A model on ranks: chunks of its modules, and the most items of a part of each module."""

    chunks: tuple[Chunk, ...]
    most: Mapping[str, int]

    @classmethod
    def of(cls, profile: PipelineProfile, ranks: int, segments: Mapping[str, int], most: Mapping[str, int]) -> ModelCut:
        return cls(partition.chunks(profile, ranks, segments), most)

    @property
    def ranks(self) -> int:
        return 1 + max(chunk.rank for chunk in self.chunks)

    @property
    def rivals(self) -> int:
        """Stages on a rank that static pipelines may have: 4, or as many as this cut has chunks there, up to a power of
        two, since more and smaller stages leave smaller bubbles."""
        return max(4, 1 << (len(self.chunks) // self.ranks - 1).bit_length())

    def graph(self, profile: PipelineProfile, batch: PipelineBatch, split: bool = False) -> PipelineGraph:
        """Graph of a batch, with every chunk's backward pass split or none."""
        chosen = frozenset(range(len(self.chunks))) if split else frozenset[int]()
        return partition.graph_of(profile, batch, self.chunks, self.most, chosen)


@dataclass(frozen=True, slots=True)
class MicrobatchSizes:
    """Sizes of a microbatch's text and of each of its pictures, in the units of the profile."""

    tokens: float = 8192.0
    picture: float = 1.0


def drawn(
    mixes: Sequence[tuple[int, int]],
    microbatches: int,
    workload: MicrobatchSizes = MicrobatchSizes(),
    seed: int = SEED,
) -> list[PipelineBatch]:
    """Batches of microbatches of one text, each with a number of pictures between the two of its mix."""
    rng = random.Random(seed)
    found: list[PipelineBatch] = []
    for mix in mixes:
        batch = []
        for _ in range(microbatches):
            pictures = rng.randint(*mix)
            seen = {"vision": [workload.picture] * pictures} if pictures else {}
            batch.append({"text": [workload.tokens]} | seen)
        found.append(batch)
    return found


# -- plans of some batches ------------------------------------------------------------------------------------------


def compare(
    profile: PipelineProfile,
    batches: Sequence[PipelineBatch],
    cut: ModelCut,
    options: SearchOptions = LocalSearch(),  # noqa: B008
    sample: Sequence[PipelineBatch] = (),
) -> Seconds:
    """Seconds of every plan on each batch. Static pipelines are cut for the mean of ``sample``, by default of all
    batches, and the best of them is the one with the least sum."""
    found: Seconds = {}
    sample = sample or batches
    families: dict[str, Seconds] = {STATIC: {}, PARAMETERS: {}, FILLED: {}}

    def note(where: Seconds, name: str, plan: PipelinePlan) -> None:
        where.setdefault(name, []).append(timeline(plan, profile).makespan)

    for batch in batches:
        rivals = static.family(profile, batch, cut.ranks, sample=sample, most=cut.rivals)
        static_peak = max(timeline(list(rivals.values())[-1], profile).peak_bytes)
        for name, plan in rivals.items():
            note(families[STATIC], name, plan)
            note(families[FILLED], name, baselines.filled(plan, profile))
        for name, plan in static.zero_bubble(profile, batch, cut.ranks, sample).items():
            note(families[FILLED], name, plan)
        if any(module.layer_parameters for module in profile.modules):
            for name, plan in static.family(profile, batch, cut.ranks, "parameters", sample, cut.rivals).items():
                note(families[PARAMETERS], name, plan)
        note(found, ONCE, baselines.searched_once(profile, batch, cut.chunks, sample, options))
        for split, suffix in ((False, ""), (True, ", W apart")):
            graph = cut.graph(profile, batch, split)
            note(found, ORDER + suffix, dual_queue(graph, profile))
            note(found, COARSE + suffix, baselines.coarse(graph, profile))
            note(found, SEARCHED + suffix, search(graph, profile, options))
            cap = max(static_peak, least_cap(graph, profile))
            note(found, SEARCHED + suffix + CAPPED, search(graph, profile, options, cap))
            found.setdefault(BOUND + suffix, []).append(lower_bound(graph, profile))
    best = {name: min(plans.values(), key=sum) for name, plans in families.items() if plans}
    return {name: best[name] for name in (PARAMETERS, STATIC, FILLED) if name in best} | found


def compare_table(title: str, columns: Mapping[str, Seconds], notes: Sequence[str] = ()) -> Table:
    """Plans by their seconds over all batches of each column, and how much faster than the best static one they are."""
    head = ["plan, simulated", *(text for name in columns for text in (f"{name}, s", "over the best 1F1B family"))]
    rows = []
    for plan in next(iter(columns.values())):
        cells = []
        for found in columns.values():
            gain = sum(found[STATIC]) / sum(found[plan]) - 1
            cells += [f"{sum(found[plan]):.2f}", "-" if plan.startswith(BOUND) else f"{gain:+.1%}"]
        rows.append([plan, *cells])
    return Table(head, rows, notes, title)


# -- a stream whose mix drifts --------------------------------------------------------------------------------------


def drift(
    profile: PipelineProfile,
    cut: ModelCut,
    microbatches: int,
    options: SearchOptions,
    workload: MicrobatchSizes = MicrobatchSizes(),
) -> Seconds:
    """Seconds of the batches of ``DRIFT``, with one cut for all of them."""
    return compare(profile, drawn(DRIFT, microbatches, workload), cut, options)


def mixes(
    profile: PipelineProfile,
    cut: ModelCut,
    microbatches: int,
    options: SearchOptions,
    workload: MicrobatchSizes = MicrobatchSizes(),
) -> dict[str, Seconds]:
    """The same for single batches of one mix each, for which the static pipelines were cut."""
    return {name: compare(profile, drawn([mix], microbatches, workload), cut, options) for name, mix in MIXES.items()}


def mixes_table(found: Mapping[str, Seconds]) -> Table:
    """Gain of plans over static pipelines cut for the mix itself, which is where plans can lose."""
    rows = []
    for name, seconds in found.items():
        [best], [filled] = seconds[STATIC], seconds[FILLED]
        gains = [best / seconds[plan][0] - 1 for plan in (ORDER, SEARCHED, f"{ORDER}, W apart", f"{SEARCHED}, W apart")]
        over_filled = filled / seconds[f"{SEARCHED}, W apart"][0] - 1
        rows.append([name, f"{best:.3f}", *(f"{gain:+.1%}" for gain in gains), f"{over_filled:+.1%}"])
    head = [
        "pictures a microbatch",
        "best 1F1B family, s",
        ORDER,
        SEARCHED,
        f"{ORDER}, W apart",
        f"{SEARCHED}, W apart",
        "the last over static with W filled in",
    ]
    return Table(head, rows, ["simulated; static pipelines are cut for the mix of the row"], "Mix by mix")


# -- step by step ---------------------------------------------------------------------------------------------------


def ablation(
    profile: PipelineProfile, batches: Sequence[PipelineBatch], cut: ModelCut, options: SearchOptions, cap: float = CAP
) -> dict[str, float]:
    """Seconds of all batches with one part of the planner more at a time, in the paper's order, and then with ours.

    The base is interleaved 1F1B over stages of equal parameters (of equal seconds where these are not known). The
    partitioner's chunks are first run by interleaved 1F1B too, whole microbatches at a time. Up to the step memory all
    layers are recomputed, as the paper's search does; then only as many as a cap of so many bytes asks for.
    """
    again = recomputing(profile)
    balance: baselines.Balance = "parameters" if any(m.layer_parameters for m in profile.modules) else "time"
    families = [static.family(again, batch, cut.ranks, balance, batches, cut.rivals) for batch in batches]
    whole = {"base": min(sum(timeline(one[name], again).makespan for one in families) for name in families[0])}

    def add(name: str, plan: PipelinePlan, times: PipelineProfile) -> None:
        whole[name] = whole.get(name, 0.0) + timeline(plan, times).makespan

    stages = tuple((number,) for number in range(len(cut.chunks)))
    for batch in batches:
        chain = baselines.Chain(partition.graph_of(profile, batch, cut.chunks, {}), stages)
        add("+ partitioner", baselines.interleaved(chain) if chain.local > 1 else baselines.one_f_one_b(chain), again)
        graph = cut.graph(profile, batch)
        add("+ interleaving", dual_queue(graph, again), again)
        add("+ reordering", search(graph, again, options), again)
        add("+ memory", search_with_recompute(graph, profile, options, cap), profile)
        split = cut.graph(profile, batch, split=True)
        add("+ W apart (ours)", search_with_recompute(split, profile, options, cap), profile)
    return whole


def recomputing(profile: PipelineProfile) -> PipelineProfile:
    """The profile of the same model where every layer keeps nothing but its input."""
    return replace(profile, modules=tuple(map(_recomputing, profile.modules)))


def _recomputing(module: ModuleProfile) -> ModuleProfile:
    layer = module.layer
    twice = {
        "backward": tuple(b + f for b, f in zip(layer.backward, layer.forward, strict=True)),
        "input": tuple(i + f for i, f in zip(layer.input, layer.forward, strict=True)),
        "saved": tuple(min(s, module.hidden_bytes * n) for s, n in zip(layer.saved, layer.sizes, strict=True)),
    }
    return replace(module, layer=replace(layer, **twice))


def ablation_table(
    model: str, found: Mapping[str, float], reported: Mapping[str, float] | None = None, source: str = ""
) -> Table:
    """Steps with what each gains; ``reported``: the paper's seconds of them, on other data."""
    reported = reported or {}
    rows, base, before = [], found["base"], found["base"]
    for name, seconds in found.items():
        paper = f"{reported[name]:.2f}, {reported['base'] / reported[name] - 1:+.1%}" if name in reported else "-"
        rows.append([name, f"{seconds:.2f}", f"{before / seconds - 1:+.1%}", f"{base / seconds - 1:+.1%}", paper])
        before = seconds
    head = ["", "s, simulated", "over the line above", "over base", "reported: s, over base"]
    notes = [f"reported, not measured by us: {source}"] if reported else []
    return Table(head, rows, notes, f"Ablation, {model}")


# -- memory ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capped:
    """Plans under a cap: the cap as a share of the peak without one, seconds over those without one, and the largest
    peak over its cap. ``way``: what is done about the cap."""

    share: float
    way: str
    slower: float
    fullest: float


WAYS = ("whole backward passes wait", "W apart, passes wait", "W apart, layers recomputed")


def memory_sweep(
    profile: PipelineProfile, batches: Sequence[PipelineBatch], cut: ModelCut, shares: Sequence[float] = SHARES
) -> list[Capped]:
    """Plans in microbatch order under caps that fall, summed over batches. A cap is at least what one microbatch needs,
    so that passes which wait have some plan; the banker's rule finds one every time."""
    found = []
    for way in WAYS:
        graphs = [cut.graph(profile, batch, way != WAYS[0]) for batch in batches]
        free = [timeline(dual_queue(graph, profile), profile) for graph in graphs]
        for share in shares:
            seconds, fullest = 0.0, 0.0
            for graph, one in zip(graphs, free, strict=True):
                cap = max(share * max(one.peak_bytes), least_cap(graph, profile))
                if way == WAYS[2]:
                    plan = search_with_recompute(graph, profile, MicrobatchOrder(), cap)
                else:
                    plan = dual_queue(graph, profile, cap=cap)
                capped = timeline(plan, profile)
                seconds += capped.makespan
                fullest = max(fullest, max(capped.peak_bytes) / cap)
            found.append(Capped(share, way, seconds / sum(one.makespan for one in free) - 1, fullest))
    return found


def least_cap(graph: PipelineGraph, profile: PipelineProfile) -> float:
    """Bytes below which no plan exists that recomputes nothing: the most that one microbatch needs on a rank."""
    return float(max(map(max, needs(Passes.of(graph, profile).held, graph.ranks, graph.microbatches))))


def memory_table(found: Sequence[Capped]) -> Table:
    """Seconds lost by each cap, by what is done about it."""
    ways = list(dict.fromkeys(one.way for one in found))
    rows = []
    for share in dict.fromkeys(one.share for one in found):
        by_way = {one.way: one for one in found if one.share == share}
        fullest = max(one.fullest for one in by_way.values())
        rows.append([f"{share:g}", *(f"{by_way[way].slower:+.1%}" for way in ways), f"{fullest:.2f}"])
    head = ["cap, of the free peak", *(f"slower: {way}" for way in ways), "largest peak over cap"]
    return Table(head, rows, ["simulated, microbatch order: no plan got stuck"], "Caps on memory")
