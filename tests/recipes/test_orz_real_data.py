"""AIME 2024 and MATH-500 through the whole recipe with a tiny model: it scores 0, and every row flows."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from data.sets import orz_math
from recipes.orz import recipe
from recipes.orz.prompt import STOP, render
from recipes.protocol import load_config
from stepstack.cli import main as cli
from stepstack.config import ROOT
from stepstack.core.run import Run
from stepstack.generation.hf import HfGenerator
from stepstack.harness.answers import Sample, read
from stepstack.models.lm import tiny
from stepstack.report import jsonl
from stepstack.scoring.maths.pool import GraderPool

SHARED = Path(os.environ.get("STEPSTACK_SHARED", ROOT.parent / "shared")) / "data" / "orz"
TRAIN = 200  # of MATH-500's rows are trained on, the others and AIME are its evals
LONGEST = 2304  # tokens of a prompt; a byte is one here, and ORZ's 2048 would drop two of MATH-500

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs {SHARED} (set STEPSTACK_SHARED): it is not copied")


def train_row(row: dict) -> list[dict]:
    """An eval row in ORZ's train schema."""
    turn = {"from": "human", "value": row["prompt"][0]["value"]}
    return [turn, {"from": "assistant", "ground_truth": {"value": row["final_answer"]}}]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> tuple[str, ...]:
    """The config of the run, its data prepared by the command line."""
    folder = tmp_path_factory.mktemp("real")
    rows = json.loads((SHARED / "math500.json").read_text())
    (folder / "train.json").write_text(json.dumps([train_row(row) for row in rows[:TRAIN]]))
    (folder / "math300.json").write_text(json.dumps(rows[TRAIN:]))
    data = {
        "type": "prepared",
        "folder": str(folder / "prepared"),
        "source": [str(folder / "train.json")],
        "evals": [str(SHARED / "aime2024.json"), str(folder / "math300.json")],
        "select": ["aime2024"],
        "test": ["aime2024", "math300"],
    }
    made = (
        "orz-tiny",
        f"dir={folder}",
        "name=q",
        f"data={json.dumps(data)}",
        "steps=2",
        "eval_every=0",
        "trackers=[]",
        "evals=[test]",
        "model={type: tiny, hidden: 32, layers: 1, intermediate: 64}",
        f"prompt={{style: orz, max_tokens: {LONGEST}}}",
        "reward={grader: math_verify, workers: 1}",
        f"rollout.prompts={TRAIN // 2}",
        "rollout.sampling.n=1",
        "rollout.sampling.max_tokens=16",
        "rollout.generator.batch=4",
        "layout.max_tokens=4096",
        "actor_updates=1",
        "critic_updates=2",
    )
    assert cli.main(("data", *made)) == 0
    return made


@pytest.fixture(scope="module")
def seen(words):
    """The run, with a note of every prompt that was sampled and every item that was graded."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    sampled, graded = Counter(), []
    generate, grade = HfGenerator.generate, GraderPool.map

    def generated(self, prompts, sampling):
        for group in generate(self, prompts, sampling):
            sampled[(group.prompt.problem.text, group.prompt.ids)] += len(group.rollouts)
            yield group

    def mapped(self, items):
        graded.extend((grader, gold) for grader, gold, _ in items)
        return grade(self, items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfGenerator, "generate", generated)
        patch.setattr(GraderPool, "map", mapped)
        patch.setattr(recipe, "report_outcome", lambda run: None)
        loaded = load_config(words[0], words[1:])
        recipe.train(Run(loaded))
    return loaded.folder, sampled, graded


def result(run: Path, when: str) -> tuple[dict, list[Sample]]:
    [file] = (run / "evals" / when).glob("*/result.json")
    return json.loads(file.read_text()), read(file.parent / "samples.jsonl")


def source() -> dict[str, str]:
    """Gold by problem of all 530 rows, as published."""
    rows = [row for name in ("aime2024", "math500") for row in json.loads((SHARED / f"{name}.json").read_text())]
    golds = {row["prompt"][0]["value"]: row["final_answer"] for row in rows}
    assert len(rows) == len(golds) == 530
    return golds


def test_prepare_keeps_every_row(words):
    manifest = orz_math.read_manifest(Path(json.loads(words[3].removeprefix("data="))["folder"]) / orz_math.MANIFEST)
    assert manifest.counts["read"] == manifest.counts["kept"] == TRAIN
    assert manifest.counts["evals"] == {"aime2024": 30, "math300": 500 - TRAIN}


def test_every_row_is_sampled_and_graded(seen):
    """None is too long here; train rows once, test rows before and after, AIME also in select."""
    _, sampled, graded = seen
    tokenizer = tiny.tokenizer()
    ids = {text: tuple(tokenizer(render(text)).input_ids) for text in source()}
    fits = {text for text, tokens in ids.items() if len(tokens) <= LONGEST}
    assert len(fits) == 530
    assert {text for text, _ in sampled} == fits
    assert all(ids[text] == tokens for text, tokens in sampled)  # nobody cut or tokenised anew
    aime = {row["prompt"][0]["value"] for row in json.loads((SHARED / "aime2024.json").read_text())}
    counts = {text: count for (text, _), count in sampled.items()}
    assert {counts[text] for text in aime} == {4}
    assert {counts[text] for text in fits - aime} == {1, 2}
    assert sum(sampled.values()) == len(graded)
    assert {grader for grader, _ in graded} == {"math_verify"}
    golds = source()
    assert Counter(gold for _, gold in graded) == sum(
        (Counter({golds[text].strip(): count}) for text, count in counts.items()), Counter()
    )


def test_every_row_is_trained_on_or_tested_on(seen):
    run, sampled, _ = seen
    _, scored = result(run, "before")
    texts = [s.problem for s in scored]
    assert len(texts) == len(set(texts))
    trained = {text for text, _ in sampled} - set(texts)
    assert len(trained) + len(texts) == 530


def test_it_trains_and_scores_nothing(seen):
    run, _, _ = seen
    first, *steps = jsonl.read(run / "metrics.jsonl")
    assert first["eval/accuracy"] == 0
    for row in steps:
        assert row["reward"] < 0.05
        assert row["actor/skipped"] == row["critic/skipped"] == row["reward/grader_error"] == 0
        assert row["actor/grad_norm"] > 0
        assert row["actor/mismatch_max"] < 1e-4
        assert all(math.isfinite(value) for value in row.values())
    for when in ("before", "after"):
        found, scored = result(run, when)
        assert found["metrics"][0]["value"] < 0.02
        assert found["failed"] == {"engine": 0, "grader": 0}
        assert all(s.tokens <= 16 for s in scored)
        assert all((s.finish == "stop") or s.tokens == 16 for s in scored)
        assert not any(stop in s.text[:-12] for s in scored for stop in STOP)
