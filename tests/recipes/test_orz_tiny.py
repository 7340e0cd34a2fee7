"""orz-tiny learns to reason: accuracy and length rise together, on problems that no stage of training saw."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.drawn.chains import Chains, draw, problems, show
from data.drawn.splits import split_of
from recipes.orz.config import TinyBase
from recipes.orz.model import demonstrations
from recipes.protocol import load_config
from stepstack.config import ConfigError
from stepstack.models.lm import tiny
from stepstack.scoring.maths.calculator import evaluate
from tests import tools

SHORT = ("model.steps=300", "steps=16", "eval_every=8", "evals=[test]", "data.test=512", "data.select=64", "seed=1")


def stepstack(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "stepstack", *words], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> tuple[Path, str, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("orz")
    words = ("orz-tiny", "name=short", f"dir={folder}", *SHORT)
    return folder / "short", stepstack("train", *words), words


def result(run: Path, when: str) -> dict:
    [file] = (run / "evals" / when).glob("*/result.json")
    return json.loads(file.read_text())


def accuracy(run: Path, when: str) -> float:
    return result(run, when)["metrics"][0]["value"]


@pytest.mark.slow
def test_it_learns(learned):
    run, _, _ = learned
    before, after = result(run, "before"), result(run, "after")
    print({k: (before[k], after[k]) for k in ("metrics", "length", "truncated")})
    assert before["n"] == after["n"] == 512
    assert accuracy(run, "after") - accuracy(run, "before") >= 0.25
    assert after["length"] >= 1.4 * before["length"]
    assert after["truncated"] < 0.2 * 512


@pytest.mark.slow
def test_it_shows_what_it_learned(learned):
    run, out, _ = learned
    for when in ("before", "after"):
        assert f"{accuracy(run, when):.3f}" in out
        assert f"{result(run, when)['length']:.1f}" in out
    assert re.search(r"avg@1\s.*±.*±", out)
    assert out.count("(answer ") == 6
    page = (run / "report.html").read_text()
    charts = tools.page_data(run / "report.html")["charts"]
    assert {"Held-out score", "Reward", "Entropy", "Response length", "Where a step's seconds go"} <= charts.keys()
    assert {line["stage"] for line in charts["Entropy"]["lines"]} == {0, 1}  # SFT and PPO
    assert tools.unexplained(run) == []
    assert "Held-out problems" in page
    assert 'href="samples.html"' in page
    assert (run / "samples.html").is_file()
    assert not re.findall(r'(?:src|href)="https?://', page)


@pytest.mark.slow
def test_the_exported_model_is_the_trained_one(learned):
    """`from_pretrained` loads it, and `stepstack eval` gives what the run said."""
    run, _, words = learned
    lm = AutoModelForCausalLM.from_pretrained(run / "model")
    assert sum(p.numel() for p in lm.parameters()) < 500_000
    assert (
        AutoTokenizer.from_pretrained(run / "model")("User: 1+1=?").input_ids
        == tiny.tokenizer()("User: 1+1=?").input_ids
    )
    shown = stepstack("eval", *words)
    [again] = (run / "evals").glob("model-*/*/result.json")
    assert f"{accuracy(run, 'after'):.4f}" in shown
    [after] = (run / "evals" / "after").glob("*/result.json")
    assert again.parent.name == after.parent.name  # the same plan
    assert (again.parent / "samples.jsonl").read_bytes() == (after.parent / "samples.jsonl").read_bytes()


def test_no_train_chain_is_held_out():
    cfg = Chains()
    splits = {name: {p.text for p in problems(cfg, name)} for name in ("train", "select", "test")}
    assert [len(splits[name]) for name in ("train", "select", "test")] == [cfg.train, cfg.select, cfg.test]
    assert not splits["train"] & splits["test"]
    assert not splits["train"] & splits["select"]
    assert not splits["select"] & splits["test"]
    rng = random.Random(1)
    drawn = [show(draw(rng, cfg)) for _ in range(20_000)]
    shares = {name: sum(split_of(text) == name for text in drawn) / len(drawn) for name in splits}
    assert shares == pytest.approx({"train": 0.8, "select": 0.1, "test": 0.1}, abs=0.02)


def test_every_sum_is_right_and_within_bounds():
    for problem in problems(Chains(), "test"):
        terms = [int(term) for term in re.findall(r"[+-]?\d+", problem.text)]
        partial = [sum(terms[: i + 1]) for i in range(len(terms))]
        assert sum(terms) == int(problem.gold)
        assert all(0 <= value <= 20 for value in partial)
        assert 5 <= len(terms) <= 7


def test_more_chains_than_there_are():
    with pytest.raises(ConfigError, match=r"data\.test=100: only \d+ such chains were found"):
        problems(Chains(terms=(2, 2), largest_term=2, largest_sum=3, test=100), "test")


def test_no_demonstration_is_held_out():
    """Over many steps and seeds, in both phases."""
    run, cfg, tokenizer = load_config("orz-tiny"), TinyBase(batch=64), tiny.tokenizer()
    steps = range(0, cfg.steps, 12)
    held_out = {p.text for split in ("select", "test") for p in problems(Chains(), split)}
    texts = [
        tokenizer.decode(row.prompt_ids)
        for seed in range(3)
        for step in steps
        for row in demonstrations(replace(run, seed=seed), cfg, Chains(), tokenizer, step)
    ]
    chains = [re.fullmatch(r"User: (.+)=\?\nAssistant: <think>", text)[1] for text in texts]
    assert len(chains) == 3 * len(steps) * 64
    assert not held_out & set(chains)
    assert {split_of(chain) for chain in chains} == {"train"}


def test_a_tool_is_called_as_it_answers_and_its_answers_are_not_learned():
    run, tokenizer = load_config("orz-tiny-tool"), tiny.tokenizer()
    rows = [row for step in (0, 250) for row in demonstrations(run, TinyBase(batch=64), run.data, tokenizer, step)]
    calling = [row for row in rows if "[" in tokenizer.decode(row.ids)]
    assert 0.4 < len(calling) / len(rows) < 0.7
    for row in calling:
        text = tokenizer.decode(row.ids)
        calls = re.findall(r"\[(.+?)\](-?\d+;)", text)
        assert 1 <= len(calls) <= 2
        for query, result in calls:
            assert evaluate(query) == result[:-1]
        learned = tokenizer.decode([row.ids[place] for place in row.learned])
        assert learned == re.sub(r"\](-?\d+;)", "]", text)
        [question] = re.findall(r"User: (.+)=\?", tokenizer.decode(row.prompt_ids))
        assert f"\\boxed{{{evaluate(question)}}}" in text


def test_the_size_of_the_model():
    lm = tiny.qwen2(len(tiny.tokenizer()), seed=0, **load_config("orz-tiny").model.arguments)
    assert 250_000 < sum(p.numel() for p in lm.parameters()) < 400_000
    assert lm.dtype == torch.float32
