"""Step Law's tables come from evals/results alone, and say so where nothing was measured."""

from __future__ import annotations

import json

import pytest

from evals.tables import steplaw
from stepstack.report import formats, tables

PROVENANCE = {
    "time": "2026-01-02T03:04:05+00:00",
    "commit": "a" * 40,
    "dirty": False,
    "versions": {"torch": "2"},
    "host": {"cores": 2, "cpu": "CPU", "memory_gib": 8, "system": "Linux"},
}
CELL = {"params": 1e4, "tokens": 2e5, "runs": 9, "loss": 2.5, "best": {"lr": 0.01, "batch": 64.0}}
FIT = {
    "cpu_s": 6.0,
    "grids": [CELL | {"surface": {"convex": True, "lr": 0.012, "batch": 80.0, "plateau": [1.5, 2.0]}}],
    "held_out": [CELL | {"surface": {"convex": False}}],
    "laws": {"best": {"lr": [2.0, -0.5, 0.25], "batch": [3.0, 0.0, 0.5]}, "surface": {"why": "no minimum"}},
    "checks": [{"cell": "c", "law": "best", "lr": 0.01, "batch": 64.0, "nearest": 0.001, "interpolated": 0.002}],
}


def shown(root) -> str:
    return formats.render(steplaw.tiny(root), "md")


def test_nothing_recorded_is_said(tmp_path):
    assert "Not measured yet" in shown(tmp_path)
    assert "Not measured yet" in formats.render(steplaw.released(tmp_path), "md")


def test_a_sweep_is_recorded_with_its_fit_and_shown(tmp_path):
    run = tmp_path / "runs" / "steplaw-tiny-seed1"
    run.mkdir(parents=True)
    facts = {"config": {"name": "steplaw-tiny-seed1", "seed": 1}, "provenance": PROVENANCE}
    (run / "config.json").write_text(json.dumps(facts))
    (run / "metrics.jsonl").write_text('{"step": 1, "cpu_s": 2.5}\n{"step": 2, "cpu_s": 3.5}\n')
    with pytest.raises(FileNotFoundError):
        tables.record(run, tmp_path)
    (run / "fit.json").write_text(json.dumps(FIT))
    tables.record(run, tmp_path)
    page = shown(tmp_path)
    for text in (
        "2 N^-0.500 D^0.250",
        "no minimum",
        "| yes | 1.50 | 2.00 |",
        "| 1.00 | 2.00 | - | - |",
        "6 CPU-s",
        "held out",
    ):
        assert text in page
