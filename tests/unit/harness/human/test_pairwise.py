"""Wins, ties and losses of two models: counted right, with the error of independent pairs, and fairly placed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest

from stepstack.config import ROOT
from stepstack.harness.human import pairwise
from stepstack.harness.human.pairwise import ClipPair, Verdict

HERE = Path()


def pair(name: str, group: str) -> ClipPair:
    return ClipPair(name, group, "p", HERE, HERE, HERE)


@dataclass(frozen=True)
class Said:
    found: list[Verdict]
    dimensions: tuple[str, ...] = ("x", "y")

    def verdicts(self, pairs):
        return [verdict for verdict in self.found if verdict.pair in {p.name for p in pairs}]


def test_a_table_by_hand():
    three = [pair("1", "real"), pair("2", "real"), pair("3", "anime")]
    said = Said(
        [
            Verdict("1", "x", "kim", "a"),
            Verdict("1", "x", "lee", "b"),
            Verdict("2", "x", "kim", "a"),
            Verdict("3", "x", "kim", "tie"),
            Verdict("1", "y", "kim", "b"),
        ]
    )
    found = {(row["dimension"], row["group"]): row for row in pairwise.as_json(pairwise.tallies(three, said))}
    assert list(found) == [
        ("x", "real"),
        ("x", "anime"),
        ("x", "total"),
        ("y", "real"),
        ("y", "anime"),
        ("y", "total"),
        ("total", "total"),
    ]
    real = found["x", "real"]
    assert (real["wins"], real["ties"], real["losses"], real["n"]) == (2, 0, 1, 2)
    assert real["net"] == 0.5  # pair 1: kim and lee differ, 0; pair 2: 1
    assert real["stderr"] == pytest.approx(stdev([0, 1]) / 2**0.5)
    assert found["y", "anime"] == {
        "dimension": "y",
        "group": "anime",
        "wins": 0,
        "ties": 0,
        "losses": 0,
        "net": None,
        "stderr": None,
        "n": 0,
    }
    whole = found["total", "total"]
    assert (whole["wins"], whole["ties"], whole["losses"], whole["n"]) == (2, 1, 2, 3)
    assert whole["net"] == pytest.approx(fmean([-1 / 3, 1, 0]))
    assert [(n, t.wins, t.ties, t.losses) for n, t in pairwise.by_judge(three, said).items()] == [
        ("kim", 2, 1, 1),
        ("lee", 0, 0, 1),
    ]


def test_published_totals_are_the_sums_of_what_is_published():
    """But one, which its source says."""
    published = json.loads((ROOT / "evals/reported/stepvideo-human.json").read_text())
    for row in published["rows"]:
        if row["source"] == "ti2v":
            parts = [values for name, values in row["counts"].items() if name != "total"]
            sums = [sum(column) for column in zip(*parts, strict=True)]
            assert sums == ([292, 325, 257] if row["key"] == "OSTopA" else row["counts"]["total"]), row["key"]


def test_the_error_covers_the_truth():
    """Against what it claims: 95% intervals of the net win rate hold the true rate in about 95 of 100 studies."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        drawn = random.choice(["a", "tie", "b"], size=80, p=[0.5, 0.2, 0.3])
        made = pairwise.tally("x", "total", [Verdict(str(i), "x", "kim", choice) for i, choice in enumerate(drawn)])
        hits += abs(made.net.value - 0.2) < 1.96 * made.net.stderr
    assert 0.91 < hits / 300 < 0.98


def test_models_stand_left_half_the_time_and_for_each_annotator_anew():
    names = [f"item {i}" for i in range(1000)]
    kim, lee = ([pairwise.left_is_a(0, who, name) for name in names] for who in ("kim", "lee"))
    assert 430 < sum(kim) < 570
    assert 430 < sum(one == other for one, other in zip(kim, lee, strict=True)) < 570
    assert kim == [pairwise.left_is_a(0, "kim", name) for name in names]
    assert kim != [pairwise.left_is_a(1, "kim", name) for name in names]


def test_a_result_is_written_with_where_it_came_from(tmp_path):
    table = pairwise.conclude(
        tmp_path / "r.json", ("A", "B"), [pair("1", "real")], Said([Verdict("1", "x", "kim", "a")])
    )
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["a"], found["b"], found["pairs"]) == ("A", "B", 1)
    assert found["rows"][0]["wins"] == found["by_judge"]["kim"]["wins"] == 1
    assert found["provenance"]["versions"]["numpy"]
    assert next(iter(table.columns[2].cells)) == "1-0-0"
