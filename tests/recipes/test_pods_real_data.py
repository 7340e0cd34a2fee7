"""The published 348-day trace: its statistics, GPU waste as published, and the rings kept up through all its events."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from stepstack.config import ROOT
from stepstack.planning.pods.architectures import KHop
from stepstack.planning.pods.orchestrator import Orchestrator
from stepstack.planning.pods.ring import Ring
from stepstack.simulation.pods import trace as traces
from stepstack.simulation.pods import waste

SHARED = Path(os.environ.get("STEPSTACK_SHARED", ROOT.parent / "shared")) / "data" / "infinitehbd"
FILE = SHARED / "fault_trace.json"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"no published trace in {SHARED} (STEPSTACK_SHARED)")


@pytest.fixture(scope="module")
def trace():
    return traces.load(FILE)


def test_it_is_the_published_file():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest().startswith("5871b881b341c952")


def test_statistics(trace):
    made = traces.statistics(trace)
    assert (made["events"], made["faults"], made["nodes ever faulty"]) == (1168, 584, 231)
    assert made["faulty nodes, mean"] == pytest.approx(0.0232, abs=0.0002)
    assert made["faulty nodes, P99"] == pytest.approx(0.0775)
    assert made["faulty nodes, max"] == pytest.approx(0.0875)
    assert made["duration in days, median"] == pytest.approx(0.85, abs=0.005)
    assert [round(100 * made[f"{level} faults"], 2) for level in ("hardware", "software", "other")] == [
        51.03,
        4.11,
        44.86,
    ]


def test_waste_is_the_published_one(trace):
    rows = waste.replay(trace, nodes=720, tps=(8, 16, 32, 64), seeds=range(5), jobs=(0.9,))
    made = {(row["architecture"], row["tp"]): 100 * row["waste"] for row in rows}
    published = {("InfinitePOD K=2", 32): 0.53, ("NVL-72", 32): 10.04, ("TPUv4", 32): 7.56}
    for key, said in published.items():
        assert made[key] == pytest.approx(said, rel=0.02), key
    # An independent simulation of the same definitions, with other shufflings.
    prototype = {("NVL-36", 16): 10.19, ("NVL-576", 32): 2.76, ("TPUv4", 64): 15.72, ("SiP-Ring", 16): 3.47}
    for key, said in prototype.items():
        assert made[key] == pytest.approx(said, rel=0.04), key
    for tp in (8, 16, 32, 64):
        assert made["ideal", tp] <= made["InfinitePOD K=3", tp] <= made["InfinitePOD K=2", tp] < made["NVL-72", tp]


def test_rings_follow_every_event(trace):
    states = traces.onto_halves(trace, 720, seed=0)
    rings = Orchestrator(Ring(720), 32, np.flatnonzero(~states.healthy_FN[0]))
    events = 0
    for before, after in zip(states.healthy_FN, states.healthy_FN[1:], strict=False):
        for node in np.flatnonzero(before & ~after):
            rings.fault(int(node))
            events += 1
        for node in np.flatnonzero(~before & after):
            rings.repair(int(node))
            events += 1
        assert len(rings.groups()) == KHop(2).groups(after[None], 8, 4)[0]
    assert events > 900
