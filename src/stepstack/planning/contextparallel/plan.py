"""Context parallelism for sparse attention: which rank computes which heads of which queries. No torch.

It follows section 7 of DSV (arXiv 2502.07590 v3; v1 has the same section with simpler formulas). Each of N ranks holds
one shard of the sequence with all heads. For each transformer block (a "layer" here, since the paper's word also names
blocks of keys) the ranks form a grid of ``hcp`` rows and ``scp`` columns. Within a column, heads are exchanged for
queries by an uneven all-to-all (head-wise), so that a rank has the queries of its whole column and the heads of its
row. Within a row, it then fetches the keys and values that those queries attend to and it lacks (sequence-wise, a
selective gather). (hcp, scp) = (N, 1) is Ulysses with heads placed by work, (1, N) is a gather of critical KV alone.

``plan`` minimises, layer by layer, the largest communication plus computation time of any rank, subject to its memory,
with hcp * scp = N and hcp <= heads (v1 section 7.2, whose constraint (b) prints that bound on scp, its text on hcp).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stepstack.planning.contextparallel.grid import LayerPlan, RankGrid
from stepstack.planning.contextparallel.problem import BlockLayout, Cluster, Inner, PlanOptions, Profile

THOROUGH_SEARCH_FACTOR = 1.25  # a grid whose quick search ends above this multiple of the best is not searched again


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan of all layers, for one cut of the sequence over the ranks."""

    layout: BlockLayout
    heads: int
    head_dim: int
    layers: tuple[LayerPlan, ...]

    @property
    def seconds(self) -> float:
        return sum(layer.seconds for layer in self.layers)

    @property
    def digest(self) -> str:
        """Hash of the plan, the same for equal plans in every process."""
        return hashlib.sha256(repr((self.layout, self.heads, self.head_dim, self.layers)).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Raise ValueError, naming layer and rule, for a plan that cannot be carried out."""
        for number, layer in enumerate(self.layers):
            if len(layer.ranks) != self.layout.ranks:
                raise ValueError(f"plan of layer {number}: every rank must have its costs, {len(layer.ranks)} have")
            rules = {
                f"hcp * scp = {layer.hcp} * {layer.scp} must be the {self.layout.ranks} ranks": (
                    layer.hcp * layer.scp == self.layout.ranks
                ),
                f"hcp = {layer.hcp} must be at most the {self.heads} heads": layer.hcp <= self.heads,
                f"{len(layer.heads)} rows of heads must be hcp = {layer.hcp}": len(layer.heads) == layer.hcp,
                "every row must have a head": all(layer.heads),
                f"rows must have each of {self.heads} heads once, ascending": (
                    sorted(itertools.chain(*layer.heads)) == list(range(self.heads))
                    and all(list(row) == sorted(row) for row in layer.heads)
                ),
                "what is sent must be received": (
                    abs(sum(r.hcp_sent - r.hcp_received for r in layer.ranks)) <= layer.hcp * layer.scp  # rounded
                    and abs(sum(r.scp_sent - r.scp_received for r in layer.ranks)) <= layer.hcp * layer.scp
                ),
                "the bound must not be above the plan": layer.bound <= layer.seconds * (1 + 1e-9),
            }
            for rule, holds in rules.items():
                if not holds:
                    raise ValueError(f"plan of layer {number}: {rule}")


def plan(
    profile: Profile,
    cluster: Cluster,
    options: PlanOptions | None = None,
    watch: Callable[[range], Iterable[int]] = iter,
) -> Plan:
    """Fastest grid and placement of heads for each layer; the same arguments always give the same plan.

    ``watch`` wraps the layers' numbers, for example in a progress bar. ValueError for ranks or heads that do not agree
    and for a layer that fits into no grid's memory.
    """
    options = options or PlanOptions()
    layout = profile.layout
    if layout.ranks != cluster.ranks:
        raise ValueError(
            f"the profile is cut for {layout.ranks} ranks, the cluster has {cluster.ranks}: make them the same"
        )
    if not profile.layers:
        raise ValueError("the profile has no layers: give the sparsity of at least one")
    heads = profile.layers[0].need.shape[1]
    for number, layer in enumerate(profile.layers):
        if layer.need.shape[1:] != (heads, layout.ranks, len(layout.keys)) or layer.pairs.shape != layer.need.shape[:3]:
            raise ValueError(
                f"layer {number}: need {list(layer.need.shape)} and pairs {list(layer.pairs.shape)} must be "
                f"[samples, {heads} heads, {layout.ranks} ranks] and {len(layout.keys)} key blocks"
            )
    shapes = list(_shapes(cluster.ranks, heads, options))
    if not shapes:
        raise ValueError(
            f"no grid (hcp, scp) in {options.shapes} has hcp * scp = {cluster.ranks} and hcp <= {heads}: add one"
        )
    layers = tuple(_best(profile, number, cluster, options, shapes) for number in watch(range(len(profile.layers))))
    result = Plan(layout, heads, profile.head_dim, layers)
    result.check()
    return result


def cost(
    profile: Profile, layer: int, cluster: Cluster, options: PlanOptions, inner: Inner, heads: Sequence[Sequence[int]]
) -> LayerPlan:
    """Plan of one layer with the given placement of heads, to compare a searched plan with. Its ``bound`` is its own
    time."""
    grid = RankGrid(profile, layer, cluster, options, len(heads), inner)
    rows = np.empty(grid.heads, int)
    for row, own in enumerate(heads):
        rows[list(own)] = row
    return grid.layer_plan(rows, None)


def in_order(heads: int, rows: int) -> list[list[int]]:
    """Heads placed by number, as evenly as possible, which is head-wise parallelism that ignores sparsity."""
    return [list(range(row * heads // rows, (row + 1) * heads // rows)) for row in range(rows)]


def _shapes(ranks: int, heads: int, options: PlanOptions) -> list[tuple[int, Inner]]:
    shapes: list[tuple[int, Inner]] = []
    for hcp in range(1, min(ranks, heads) + 1):
        if ranks % hcp == 0 and (options.shapes is None or (hcp, ranks // hcp) in options.shapes):
            shapes.append((hcp, "hcp"))
            if 1 < hcp < ranks:  # else both are the same grid
                shapes.append((hcp, "scp"))
    return shapes


def _best(
    profile: Profile, layer: int, cluster: Cluster, options: PlanOptions, shapes: list[tuple[int, Inner]]
) -> LayerPlan:
    """Best plan of a layer: a quick search on every grid whose bound allows it, then a thorough one on those that came
    close."""
    grids = [RankGrid(profile, layer, cluster, options, hcp, inner) for hcp, inner in shapes]
    quick: list[tuple[float, RankGrid]] = []
    least = np.inf
    for grid in sorted(grids, key=lambda grid: grid.bound):
        if grid.bound < least:
            quick.append((grid.search(0)[1], grid))
            least = min(least, quick[-1][0])
    best: LayerPlan | None = None
    for value, grid in sorted(quick, key=lambda pair: pair[0]):
        if best is None or (value <= THOROUGH_SEARCH_FACTOR * best.seconds and grid.bound < best.seconds):
            layer_plan = grid.search(options.restarts)[0]
            if grid.fits(layer_plan) and (best is None or layer_plan.seconds < best.seconds):
                best = layer_plan
    if best is None:
        needed = min(max(rank.memory for rank in grid.search(0)[0].ranks) for grid in grids)
        raise ValueError(
            f"layer {layer}: no grid fits: the smallest needs {needed} bytes a rank, memory is {cluster.memory:.4g}: "
            "take more ranks"
        )
    return best
