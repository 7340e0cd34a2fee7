"""`stepstack bench pods`: fault events, the trace's replay and placement, each against a plain peer in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from stepstack.planning.pods.architectures import KHop
from stepstack.planning.pods.orchestrator import Orchestrator
from stepstack.planning.pods.placement import Deployment, Job, place
from stepstack.planning.pods.ring import Ring
from stepstack.report.provenance import describe, provenance
from stepstack.terminal import console


def measure(nodes: int = 10_000, events: int = 400) -> dict[str, Any]:
    """CPU times of one core. ``nodes``: size of the ring that takes fault and repair events in turn."""
    return {"bench": "pods", "rows": [_events(nodes, events), _replay(), _placement()], "provenance": provenance()}


def show(result: dict[str, Any]) -> None:
    table = Table("CPU time of one core", "ours", "peer", "ratio")
    for row in result["rows"]:
        table.add_row(row["what"], row["ours"], row["peer"], f"{row['ratio']:.1f}x")
    out = console()
    out.print(table)
    out.print(describe(result["provenance"]))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Result of the work, and its CPU seconds."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def _events(nodes: int, events: int) -> dict[str, Any]:
    """Times of fault and repair events, where the peer cuts and wires the whole ring anew."""
    rng = np.random.default_rng(0)
    ring = Ring(nodes)
    rings = Orchestrator(ring, 32, rng.choice(nodes, nodes // 50, replace=False))
    ours, peer, changed, renewed = list[float](), list[float](), list[int](), list[int]()
    for _ in range(events):
        down = np.flatnonzero(~rings.healthy_N)
        repair = len(down) > nodes // 50
        node = int(rng.choice(down if repair else np.flatnonzero(rings.healthy_N)))
        before = set(map(tuple, rings.groups().tolist()))
        change, spent = _timed(partial(rings.repair if repair else rings.fault, node))
        ours.append(spent)
        changed.append(len(change.groups_C))
        fresh, spent = _timed(partial(Orchestrator, ring, 32, np.flatnonzero(~rings.healthy_N)))
        peer.append(spent)
        renewed.append(len(set(map(tuple, fresh.groups().tolist())) - before))

    def summary(seconds: list[float], rings: list[int]) -> str:
        median, late = 1e3 * np.median(seconds), 1e3 * np.percentile(seconds, 99)
        return f"{median:.2f} ms (P99 {late:.2f}), {np.mean(rings):.0f} rings change"

    return {
        "what": f"a fault or repair at {nodes} nodes, {events} events; peer: all rings anew",
        "ours": summary(ours, changed),
        "peer": summary(peer, renewed),
        "ratio": float(np.median(peer) / np.median(ours)),
    }


def _replay() -> dict[str, Any]:
    """Times of counting as many states as the trace has, where the peer counts in plain loops (20 states, times 50)."""
    states = np.random.default_rng(0).random((1000, 720)) > 0.0118
    tps = (8, 16, 32, 64)
    some = states[:20].tolist()
    fast, ours = _timed(lambda: [KHop(2).groups(states, tp // 4, 4)[:20].tolist() for tp in tps])
    slow, spent = _timed(lambda: [[_plain_khop(state, tp // 4, 2) for state in some] for tp in tps])
    peer = 50 * spent
    if fast != slow:
        raise AssertionError("the vectorised count differs from the loop: compare KHop.groups and _plain_khop")
    what = "1000 fault states of 720 nodes x 4 TP sizes, K=2; peer: a loop over nodes"
    return {"what": what, "ours": f"{1e3 * ours:.0f} ms", "peer": f"{1e3 * peer:.0f} ms", "ratio": peer / ours}


def _plain_khop(healthy: list[bool], group: int, hops: int) -> int:
    """Groups that the components of a K-hop ring hold, by walking."""
    nodes, sizes, size, gap = len(healthy), [], 0, hops
    first = next((i for i in range(nodes) if healthy[i] and not any(healthy[i - k] for k in range(1, hops + 1))), 0)
    for step in range(nodes):
        if healthy[(first + step) % nodes]:
            if gap >= hops and size:
                sizes.append(size)
                size = 0
            size, gap = size + 1, 0
        else:
            gap += 1
    return sum(size // group for size in [*sizes, size])


def _placement() -> dict[str, Any]:
    """Times of placement, where the peer leaves out columns with faults as far as the job fits (our reading of the
    paper)."""
    deployment, job = Deployment(Ring(2048), 8), Job(32, 4, 54)
    healthy = np.random.default_rng(1).random(2048) >= 0.05
    mine, ours = _timed(partial(place, deployment, healthy, job, "aligned"))
    theirs, peer = _timed(partial(place, deployment, healthy, job, "constrained"))
    return {
        "what": "placing 85% of 2048 nodes at 5% faults, DP 4; peer: constrained columns",
        "ours": f"{ours:.2f} s, {mine.rate:.1%} between ToRs",
        "peer": f"{peer:.2f} s, {theirs.rate:.1%} between ToRs",
        "ratio": peer / ours,
    }
