"""orz-tiny through the real vLLM, in the training process and on two servers: new weights flow in every step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stepstack.config import ROOT
from stepstack.report import jsonl
from tests.system import fsdp
from tests.system.processes import ok
from tests.vllm.test_vllm import Served

pytest.importorskip("vllm", reason="vLLM is not installed here: run scripts/test_vllm.sh")
pytestmark = pytest.mark.vllm

MINI = str(ROOT / "tests" / "system" / "mini.yaml")
# Heads of 32 numbers, the least that vLLM decodes on a CPU, and steps that move the weights.
WORDS = ("steps=3", "eval_every=0", "evals=[]", "model.hidden=128", "actor.optim.lr=3e-3", "critic.optim.lr=3e-3")
SMALL = "kv_cache_gib: 0.0625, max_num_seqs: 16, enforce_eager: true, dtype: float32, sleep_level: 0"
COLOCATED = f"rollout.generator={{type: vllm, max_model_len: 128, {SMALL}}}"
MISMATCH = 1e-3  # of log-probabilities: vLLM's against the trainer's


def train(run: Path, *words: str) -> list[dict]:
    command = [sys.executable, "-m", "stepstack", "train", MINI, f"name={run.name}", f"dir={run.parent}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [row for row in jsonl.read(run / "metrics.jsonl") if row["step"] > 0]


@pytest.fixture(scope="module")
def colocated(tmp_path_factory) -> tuple[Path, list[dict]]:
    run = tmp_path_factory.mktemp("colocated") / "run"
    return run, train(run, *WORDS, COLOCATED)


def untied(base: Path, to: Path) -> Path:
    """A copy of a model whose head is a matrix of its own: on a CPU vLLM packs a tied head once, at its start, and a
    server cannot be told to pack it anew, so one is refused (docs/vllm.md)."""
    lm = AutoModelForCausalLM.from_pretrained(base)
    lm.config.tie_word_embeddings = False
    lm.lm_head.weight = torch.nn.Parameter(lm.model.embed_tokens.weight.detach().clone())
    lm.save_pretrained(to)
    AutoTokenizer.from_pretrained(base).save_pretrained(to)
    return to


def check(rows: list[dict]) -> None:
    assert len(rows) == 3
    for row in rows:
        assert row["actor/mismatch_max"] < MISMATCH
        assert row["actor/grad_norm"] > 0


def test_in_the_training_process(colocated):
    check(colocated[1])


BOX = "tool={type: calculator, open: '\\boxed{', close: '}', result: '({result})', calls: 2}"  # what the base writes


def test_responses_that_call_a_tool(tmp_path):
    """Turn by turn, each a prompt of its own: the trainer's log-probabilities of what was sampled are vLLM's."""
    rows = train(tmp_path / "run", *WORDS, COLOCATED, BOX)
    check(rows)
    assert max(row.get("tool/calls", 0.0) for row in rows) > 0.1


def test_in_a_worker_of_its_own(tmp_path):
    """A worker process starts vLLM, takes each version of the weights and samples what the trainer then learns from."""
    run = tmp_path / "run"
    check(train(run, *WORDS, COLOCATED, "stream={staleness: 0, workers: 1}"))
    sampled = jsonl.read(run / "stream" / "lengths.jsonl")
    assert {row["step"] for row in sampled} == {0, 1, 2}


@pytest.fixture
def served(colocated, tmp_path) -> Iterator[tuple[Path, str]]:
    """(run folder, generator) with two servers that hold the run's base model."""
    run = tmp_path / "run"
    base = untied(colocated[0] / "base" / "model", run / "base" / "model")
    servers = [Served(base, tmp_path / f"{i}.log") for i in range(2)]
    urls = ", ".join(server.wait().url for server in servers)
    settings = f"type: vllm_server, urls: [{urls}], transfer: disk, dir: {tmp_path / 'weights'}, patience: 180.0"
    yield run, f"rollout.generator={{{settings}}}"
    for server in servers:
        server.kill()


def test_on_two_servers(served):
    """They start with the base model; what the trainer sends each step is what they sample from."""
    run, generator = served
    check(train(run, *WORDS, generator))
    assert len(list((run.parent / "weights").glob("weights-*"))) == 1


def test_on_two_servers_with_sharded_weights(served):
    """Two FSDP2 processes gather what the first one sends."""
    run, generator = served
    for ended in fsdp.train(run, 2, *WORDS, generator):
        ok(ended)
    check([row for row in jsonl.read(run / "metrics.jsonl") if row["step"] > 0])
