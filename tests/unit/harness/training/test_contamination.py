"""The contamination report: its figures, what it says that it cannot see, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepstack.config import ConfigError
from stepstack.generation.types import Sampling
from stepstack.harness.task import Task
from stepstack.harness.training import contamination
from stepstack.records import Problem, Score

LONG = "A train leaves the old station at noon and travels north at sixty miles per hour until it stops"


def task(name: str, texts: list[str], version: int = 1) -> Task:
    """Indices start at 10, so that they are not row numbers."""
    return Task(
        name=name,
        version=version,
        about="made up",
        rows=lambda data: [Problem(10 + i, text, "1") for i, text in enumerate(texts)],
        request=lambda problem: problem.text,
        score=lambda rollouts: [Score(0.0) for _ in rollouts],
        budget=Sampling(),
    )


TASKS = [task("sums", ["6-3+1", "2+2"], version=3), task("trains", [f"{LONG}?", f"Why? {LONG}"])]
TRAINING = {"orz": ["1+1", "2+2", f"so {LONG}"], "clean": ["something else"]}


def test_report():
    found = contamination.report(TRAINING, TASKS, Path())
    assert json.loads(json.dumps(found)) == found
    assert (found["n"], found["training"]) == (13, {"orz": 3, "clean": 1})
    sums, trains, *others = found["rows"]
    assert [(r["training"], r["task"]) for r in others] == [("clean", "sums"), ("clean", "trains")]
    assert not any(r["share"] or r["examples"] or r["train_rows"] for r in others)
    assert sums == {
        "training": "orz",
        "task": "sums",
        "version": 3,
        "questions": 2,
        "short": 2,
        "exact": 1,
        "ngram": 0,
        "train_rows": 1,
        "share": 0.5,
        "examples": [{"train": 1, "question": 11, "kind": "exact", "text": "2+2"}],
    }
    assert (trains["exact"], trains["ngram"], trains["short"], trains["share"]) == (0, 2, 0, 1.0)
    assert [e["question"] for e in trains["examples"]] == [10, 11]


def test_markdown_says_what_only_equal_texts_can_find():
    text = contamination.markdown(contamination.report(TRAINING, TASKS, Path()))
    assert "| orz | 3 | sums | 2 | 1 | 0 | 50.0% | 1 |" in text
    assert "Questions shorter than 13 words: sums: 2 of 2; only exact overlap can find them." in text
    assert "- orz row 1, sums question 11: the same text: `2+2`" in text
    assert "- orz row 2, trains question 10: 13 words in a row: `a train leaves" in text
    long = contamination.markdown(contamination.report({"t": [LONG]}, [task("x", [LONG])], Path(), n=5))
    assert "shorter than" not in long
    assert "| 5 words in a row |" in long
    odd = "`a`\n" * 99
    shown = contamination.markdown(contamination.report({"t": [odd]}, [task("x", [odd])], Path())).splitlines()[-1]
    assert shown.endswith(" ...`")
    assert shown.count("`") == 2


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ConfigError, match="no training rows to compare with: empty"):
        contamination.report({"empty": []}, TASKS, Path())
    with pytest.raises(ConfigError, match="no training set is given"):
        contamination.report({}, TASKS, Path())
    with pytest.raises(ConfigError, match="task none: no rows"):
        contamination.report(TRAINING, [task("none", [])], Path())
    with pytest.raises(ConfigError, match="two of the tasks sums, sums have the same name"):
        contamination.report(TRAINING, [TASKS[0], TASKS[0]], Path())
