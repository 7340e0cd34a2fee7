"""GPU waste, the largest job and waiting time of every architecture, over many fault states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stepstack.planning.pods import closed
from stepstack.planning.pods.architectures import ARCHITECTURES, CubeDomains, largest_job
from stepstack.planning.pods.ring import group_nodes
from stepstack.simulation.pods.trace import States, Trace, onto_halves

WasteRow = dict[str, Any]
Step = Callable[[], None]  # one unit of progress


def replay(
    trace: Trace,
    *,
    nodes: int,
    tps: Sequence[int],
    seeds: Sequence[int],
    jobs: Sequence[float],
    names: Sequence[str] = tuple(ARCHITECTURES),
    step: Step = lambda: None,
) -> list[WasteRow]:
    """Waste of every architecture and TP size over the trace, as time means over ``seeds`` shufflings of servers.

    A row has architecture, tp, waste (mean over time, of all GPUs), waste_stderr (over shufflings), waste_p99 (over
    time), largest_p01 (GPUs of the largest job that fits for 99% of the time, as a fraction of all) and waiting (by job
    size as a fraction of all GPUs: the part of time in which it does not fit). A TP size that an architecture cannot
    host has no row.
    """
    shufflings = []
    for seed in seeds:
        shufflings.append(onto_halves(trace, nodes, seed))
        step()
    rows = []
    for name in names:
        for tp in tps:
            results = [_one(states, name, tp, jobs) for states in shufflings]
            step()
            wastes = [row for row in results if row is not None]
            if wastes:
                rows.append({"architecture": name, "tp": tp, **_mean(wastes)})
    return rows


def over_time(trace: Trace, *, nodes: int, tp: int, seed: int, names: Sequence[str]) -> dict[str, Any]:
    """Days, and the waste of each architecture from that day on, of one shuffling."""
    states = onto_halves(trace, nodes, seed)
    lines = {name: _waste(states, name, tp) for name in names}
    return {"day": states.start_F.tolist(), **{name: line.tolist() for name, line in lines.items() if line is not None}}


def iid(
    *,
    nodes: int,
    tps: Sequence[int],
    rates: Sequence[float],
    draws: int,
    seed: int = 0,
    names: Sequence[str] = tuple(ARCHITECTURES),
    step: Step = lambda: None,
) -> list[WasteRow]:
    """Mean waste over ``draws`` states at each of ``rates``, where every node is faulty independently.

    Rows have its standard error, and the closed form where there is one.
    """
    rows = []
    for rate in rates:
        if not 0 <= rate < 1:
            raise ValueError(f"rate {rate}: a fault ratio is at least 0 and under 1")
        rng = np.random.default_rng([seed, round(rate * 1e6)])
        states = States(
            rng.random((draws, nodes)) >= rate, np.ones(draws, np.float64), np.arange(draws, dtype=np.float64)
        )
        for name in names:
            for tp in tps:
                line = _waste(states, name, tp)
                if line is not None:
                    spread = float(line.std(ddof=1)) / draws**0.5 if draws > 1 else float("nan")
                    row = {"architecture": name, "tp": tp, "rate": rate, "waste": float(line.mean())}
                    rows.append({**row, "waste_stderr": spread, "closed": expected(name, rate, nodes, tp)})
        step()
    return rows


def expected(name: str, rate: float, nodes: int, tp: int, gpus: int = 4) -> float | None:
    """Closed form of an architecture's waste at a fault ratio.

    None where there is none, or where it is no good approximation (a K-hop ring in many pieces).
    """
    group = group_nodes(tp, gpus, nodes)
    match name:
        case "ideal":
            return closed.domains(rate, nodes, group)
        case "InfinitePOD K=2" | "InfinitePOD K=3":
            hops = int(name[-1])
            return closed.khop(rate, nodes, group, hops) if rate**hops * group < 0.1 else None
        case "SiP-Ring":
            return closed.fixed_blocks(rate, group)
        case "TPUv4":
            cube = CubeDomains().size // gpus
            return closed.fixed_blocks(rate, group) if group <= cube else closed.cubes(rate, nodes, cube, group)
        case _:
            size = int(name.partition("-")[2]) // gpus
            return closed.domains(rate, size, group) if nodes % size == 0 else None


def _waste(states: States, name: str, tp: int, gpus: int = 4) -> Any:
    capacity = largest_job(ARCHITECTURES[name], states.healthy_FN, tp, gpus)
    nodes = states.healthy_FN.shape[1]
    return None if capacity is None else states.healthy_FN.mean(1) - capacity / (nodes * gpus)


def _one(states: States, name: str, tp: int, jobs: Sequence[float], gpus: int = 4) -> WasteRow | None:
    nodes = states.healthy_FN.shape[1]
    capacity = largest_job(ARCHITECTURES[name], states.healthy_FN, tp, gpus)
    if capacity is None:
        return None
    share = capacity / (nodes * gpus)
    lost = states.healthy_FN.mean(1) - share
    return {
        "waste": states.mean(lost),
        "waste_p99": states.quantile(lost, 0.99),
        "largest_p01": states.quantile(share, 0.01),
        "waiting": {f"{job:g}": states.mean(share < job) for job in jobs},
    }


def _mean(rows: Sequence[WasteRow]) -> WasteRow:
    """Mean of the rows over shufflings."""
    values = [row["waste"] for row in rows]
    waiting = {job: float(np.mean([row["waiting"][job] for row in rows])) for job in rows[0]["waiting"]}
    means = {key: float(np.mean([row[key] for row in rows])) for key in ("waste", "waste_p99", "largest_p01")}
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {**means, "waste_stderr": spread, "waiting": waiting}
