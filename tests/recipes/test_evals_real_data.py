"""AIME 2024 and MATH-500 through `stepstack eval` with a tiny model: near 0, every published row accounted for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stepstack.cli import main as cli
from stepstack.config import ROOT
from stepstack.harness import answers as io
from stepstack.models.lm import tiny

SHARED = Path(os.environ.get("STEPSTACK_SHARED", ROOT.parent / "shared")) / "data" / "orz"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no published data in {SHARED} (STEPSTACK_SHARED)")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evals")
    tokenizer = tiny.tokenizer()
    lm = tiny.qwen2(len(tokenizer), hidden=32, layers=1, intermediate=32, seed=0)
    lm.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = ["eval", "orz-tiny", f"dir={folder}", "name=q", "--model", str(folder / "model"), "--data", str(SHARED)]
    assert cli.main([*words, "--tasks", "aime24", "--max-tokens", "12"]) == 0
    more = ["--tasks", "math500,math500_orz_legacy", "--samples", "1"]
    assert cli.main([*words, *more, "--max-tokens", "12", "rollout.generator.batch=128"]) == 0
    [made] = (folder / "q" / "evals" / "others").iterdir()
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "file", "k"),
    [("aime24", "aime2024.json", 16), ("math500", "math500.json", 1), ("math500_orz_legacy", "math500.json", 1)],
)
def test_every_row_is_accounted_for(place, task, file, k):
    rows = json.loads((SHARED / file).read_text())
    [folder] = place.glob(f"{task}-avg*")
    result = json.loads((folder / "result.json").read_text())
    kept = io.read(folder / "samples.jsonl")
    assert [(s.problem, s.gold) for s in kept[::k]] == [
        (row["prompt"][0]["value"], row["final_answer"].strip()) for row in rows
    ]
    assert [(s.index, s.sample) for s in kept] == [(i, s) for i in range(len(rows)) for s in range(k)]
    assert (result["n"], result["k"], result["samples"]) == (len(rows), k, len(rows) * k)
    assert result["failed"] == {"engine": 0, "grader": 0}
    assert result["metrics"][0]["name"] == f"avg@{k}"
    assert result["metrics"][0]["value"] < 0.01
    assert all(s.prompt.endswith("\nAssistant: <think>") and s.problem in s.prompt for s in kept)


@pytest.mark.slow
def test_the_page_shows_the_tasks(place):
    page = (place / "samples.html").read_text()
    assert "math500_orz_legacy" in page
