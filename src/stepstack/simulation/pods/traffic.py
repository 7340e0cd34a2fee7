"""Cross-ToR rates of placement methods over fault ratios, and their distance from the optimum on small rings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stepstack.planning.pods.placement import Deployment, Job, Method, place
from stepstack.planning.pods.ring import Ring

METHODS: tuple[Method, ...] = ("greedy", "lines", "constrained", "aligned")


def curve(
    *,
    nodes: int,
    per_tor: int,
    hops: int,
    tp: int,
    dp: int,
    share: float,
    rates: Sequence[float],
    draws: int,
    methods: Sequence[Method] = METHODS,
    step: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Mean cross-ToR rate of each method at each fault ratio, with independent faults, for a job on ``share`` of all
    nodes.

    ``placed``: draws in which the job fits at all. The others do not count.
    """
    deployment = Deployment(Ring(nodes, hops=hops), per_tor)
    job = Job(tp, dp, max(1, int(share * nodes / (deployment.ring.group_nodes(tp) * dp))))
    rows = []
    for rate in rates:
        rates_by_method: dict[Method, list[float]] = {method: [] for method in methods}
        for draw in range(draws):
            healthy = np.random.default_rng([draw, round(rate * 1e6)]).random(nodes) >= rate
            if fits(deployment, healthy, job):
                for method in methods:
                    rates_by_method[method].append(place(deployment, healthy, job, method).rate)
            step()
        for method, cross_rates in rates_by_method.items():
            row = {"nodes": nodes, "per_tor": per_tor, "hops": hops, "tp": tp, "dp": dp, "pp": job.pp, "share": share}
            mean = float(np.mean(cross_rates)) if cross_rates else None
            worst = max(cross_rates) if cross_rates else None
            rows.append(
                {**row, "rate": rate, "method": method, "cross": mean, "worst": worst, "placed": len(cross_rates)}
            )
    return rows


def fits(deployment: Deployment, healthy: np.ndarray, job: Job) -> bool:
    """Whether the healthy nodes hold the job."""
    ring, size = deployment.ring, deployment.ring.group_nodes(job.tp)
    return sum(len(ring.cut(part, size)) for part in ring.components(healthy)) >= job.groups


def gap(
    *,
    shapes: Sequence[tuple[int, int, int]],
    draws: int,
    methods: Sequence[Method] = (*METHODS, "best"),
    step: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Hops between ToRs on small rings with dp=2, summed over draws, beside the exact optimum.

    ``shapes``: (nodes, nodes a ToR, nodes a group). Fault ratios of 3 to 15% and jobs of 70 to 90% of the ring are
    drawn.
    """
    rows = []
    for nodes, per_tor, size in shapes:
        deployment = Deployment(Ring(nodes), per_tor)
        crossed: dict[Method, int] = {"exact": 0}
        crossed.update((method, 0) for method in methods)
        hops = cases = 0
        for draw in range(draws):
            rng = np.random.default_rng(draw)
            healthy = rng.random(nodes) >= rng.choice([0.03, 0.07, 0.1, 0.15])
            job = Job(4 * size, 2, max(1, int(rng.choice([0.7, 0.8, 0.9]) * nodes / (2 * size))))
            if fits(deployment, healthy, job):
                placements = {method: place(deployment, healthy, job, method) for method in crossed}
                hops, cases = hops + placements["exact"].hops, cases + 1
                crossed = {method: crossed[method] + placements[method].crossings for method in crossed}
            step()
        row: dict[str, Any] = {"nodes": nodes, "per_tor": per_tor, "group": size, "cases": cases, "hops": hops}
        rows.append(row | {str(method): count for method, count in crossed.items()})
    return rows
