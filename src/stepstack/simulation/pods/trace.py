"""Published fault trace (stepfun-ai/InfiniteHBD-Trace): 400 servers of 8 GPUs over 348 days.

It is a list of events {node_id, event_time (days), event_type: fault_start | fault_end, fault_type}, by time. A node
may have several faults at once, and is faulty while it has any.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SERVERS = 400  # watched servers, of which 231 ever appear in the published trace


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: ``node`` counts from 0, ``start`` and ``end`` are in days. ``level``: the published kind of fault, or
    a fault type that is a text; "" where neither is given."""

    node: int
    start: float
    end: float
    level: str


@dataclass(frozen=True, slots=True)
class Trace:
    """Faults of a cluster. ``days``: its length, from 0 to the last event. ``nodes``: the number with and without
    faults."""

    faults: tuple[Fault, ...]
    nodes: int
    days: float
    events: int


@dataclass(frozen=True, slots=True)
class States:
    """Fault states ``healthy_FN`` in time order, with the start and the length of each in days."""

    healthy_FN: NDArray[np.bool_]
    days_F: NDArray[np.float64]
    start_F: NDArray[np.float64]

    def mean(self, values_F: NDArray) -> float:
        """Mean over time."""
        return float((values_F * self.days_F).sum() / self.days_F.sum())

    def quantile(self, values_F: NDArray, q: float) -> float:
        """Least value that is not exceeded for a fraction q of the time."""
        order = np.argsort(values_F, kind="stable")
        cumulative = np.cumsum(self.days_F[order]) / self.days_F.sum()
        return float(values_F[order][np.searchsorted(cumulative, q)])


def load(file: Path, nodes: int = SERVERS) -> Trace:
    """Trace in a file. ValueError, which names file and event, for a file that is no trace.

    Refused are: no list of events, a field that is missing or no number, times out of order, an end without a start or
    a start without an end, and more nodes than ``nodes``.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist: give fault_trace.json of stepfun-ai/InfiniteHBD-Trace")
    try:
        events = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}; download it again") from None
    if not isinstance(events, list) or not events:
        raise ValueError(f"{file}: must be a list of events with at least one")
    faults, last = [], 0.0
    names: dict[str, int] = {}
    running: dict[tuple[int, str], list[float]] = {}
    for place, event in enumerate(events):
        where = f"{file}: event {place}"
        name, time, kind, what, level = _fields(event, where)
        if time < last:
            raise ValueError(f"{where}: event_time {time:g} comes after {last:g}: sort the events by time")
        last = time
        node = names.setdefault(name, len(names))
        if kind == "fault_start":
            running.setdefault((node, what), []).append(time)
        elif running.get((node, what)):
            faults.append(Fault(node, running[node, what].pop(0), time, level))
        else:
            raise ValueError(
                f"{where}: fault_end of {name} without a fault_start of the same type: add it, or remove the event"
            )
    if open_ := [node for (node, _), starts in running.items() if starts]:
        raise ValueError(
            f"{file}: {len(open_)} faults never end, the first on {list(names)[open_[0]]}: add their fault_end"
        )
    if len(names) > nodes:
        raise ValueError(f"{file}: {len(names)} nodes had faults, but the cluster has {nodes}: raise nodes")
    return Trace(tuple(faults), nodes, last, len(events))


def _fields(event: Any, where: str) -> tuple[str, float, str, str, str]:
    if not isinstance(event, Mapping):
        raise ValueError(f"{where}: must be an object, not {type(event).__name__}")
    missing = [key for key in ("node_id", "event_time", "event_type", "fault_type") if key not in event]
    if missing:
        raise ValueError(f"{where}: no {missing[0]}: add it, or remove the event")
    time, kind = event["event_time"], event["event_type"]
    if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < float("inf"):
        raise ValueError(f"{where}: event_time {time!r} must be a number of days from 0 on")
    if kind not in ("fault_start", "fault_end"):
        raise ValueError(f"{where}: event_type {kind!r} must be fault_start or fault_end")
    what = event["fault_type"]
    level = what.get("Level") if isinstance(what, Mapping) else what
    return str(event["node_id"]), float(time), kind, json.dumps(what, sort_keys=True), str(level or "").strip()


def states(faults: tuple[Fault, ...] | list[Fault], nodes: int, days: float) -> States:
    """Healthy nodes between any two events, from day 0 on. At the time of an event, the event has happened."""
    times = np.unique(np.array([0.0, *(f.start for f in faults), *(f.end for f in faults)]))
    change = np.zeros((len(times) + 1, nodes), np.int16)
    node = np.array([f.node for f in faults], int)
    np.add.at(change, (np.searchsorted(times, [f.start for f in faults]), node), 1)
    np.add.at(change, (np.searchsorted(times, [f.end for f in faults]), node), -1)
    lasting = np.diff(np.append(times, days))
    lasts = lasting > 0
    return States((np.cumsum(change, 0)[:-1] == 0)[lasts], lasting[lasts], times[lasts])


def statistics(trace: Trace) -> dict[str, float]:
    """Statistics that the repository prints of its trace, computed from the events. Ratios of faulty nodes are over
    time."""
    history = states(trace.faults, trace.nodes, trace.days)
    ratio = 1 - history.healthy_FN.mean(1)
    lasted = np.array([f.end - f.start for f in trace.faults])
    levels = Counter(f.level.split()[0] if f.level else "unnamed" for f in trace.faults)
    return {
        "events": trace.events,
        "faults": len(trace.faults),
        "nodes ever faulty": len({f.node for f in trace.faults}),
        "days": trace.days,
        "faulty nodes, mean": history.mean(ratio),
        "faulty nodes, P50": history.quantile(ratio, 0.5),
        "faulty nodes, P90": history.quantile(ratio, 0.9),
        "faulty nodes, P99": history.quantile(ratio, 0.99),
        "faulty nodes, max": float(ratio.max()),
        "duration in days, mean": float(lasted.mean()),
        "duration in days, median": float(np.median(lasted)),
        **{f"{level.lower()} faults": count / len(trace.faults) for level, count in sorted(levels.items())},
    }


def onto_halves(trace: Trace, nodes: int, seed: int) -> States:
    """Trace on ``nodes`` nodes of 4 GPUs: each server is two nodes, shuffled over the ring, and the rest drop out.

    By Bayes: with p8 the mean ratio of faulty servers, a half is faulty with p4 = 1 - sqrt(1 - p8). Given a faulty
    server, each half alone is faulty with (p8 - p4) / p8, and both with p4^2 / p8. ValueError for more nodes than
    halves.
    """
    if not 0 < nodes <= 2 * trace.nodes:
        raise ValueError(
            f"nodes={nodes}: the trace has {trace.nodes} servers, which are {2 * trace.nodes} nodes of 4 "
            "GPUs: set nodes to as many at most"
        )
    rng = np.random.default_rng(seed)
    history = states(trace.faults, trace.nodes, trace.days)
    p8 = history.mean(1 - history.healthy_FN.mean(1))
    both = (1 - (1 - p8) ** 0.5) ** 2 / p8
    place = rng.permutation(2 * trace.nodes)
    halves = []
    for fault in trace.faults:
        hit = (0, 1) if rng.random() < both else (int(rng.integers(2)),)
        halves += [Fault(int(place[2 * fault.node + side]), fault.start, fault.end, fault.level) for side in hit]
    return states([f for f in halves if f.node < nodes], nodes, trace.days)
