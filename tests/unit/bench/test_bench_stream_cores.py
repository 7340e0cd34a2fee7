"""The table of asynchronous training on two cores, by hand."""

from __future__ import annotations

from evals.tables import bench_stream_cores
from stepstack.report.provenance import provenance


def test_ratio_and_bound_by_hand():
    """One core generates 2 s and trains 6 s: two processes take 4 s at best, a trainer beside a worker 6 s."""
    ways = {"one process": (8.0, 2.0), "two data-parallel": (5.0, 1.0), "trainer and worker": (6.25, 0.0)}
    rows = [
        {"algorithm": "PPO", "way": way, "round": number, "step": step, "rollout": rollout}
        for way, (step, rollout) in ways.items()
        for number in range(2)
    ]
    table = bench_stream_cores.table_of({"rows": rows, "steps": 3, "provenance": provenance()})
    assert table.rows == [("PPO", "8.00", "5.00", "6.25", "25%", "0.80 ± 0.00", "0.67")]
