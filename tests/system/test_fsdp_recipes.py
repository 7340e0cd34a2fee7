"""Every recipe's models under FSDP2: two sharded processes follow one process, and what they leave is whole."""

from __future__ import annotations

import csv
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.recipes import test_stepaudio_released as released
from tests.system import fsdp, hooks
from tests.system.processes import checkpoint, differences, ok, rows, samples, train

# AdamW with an eps above most gradients: its steps are smooth in the gradients (tests/system/processes.py, SMOOTH).
SMOOTH = "{type: adamw, lr: 1e-3, eps: 1e-3}"
VIDEO = (
    "steps=3",
    "vae.steps=3",
    "vae.gate=0.0",
    f"vae.optim={SMOOTH}",
    f"dit.optim={SMOOTH}",
    "eval_every=2",
    "data.train=40",
    "data.test=6",
    "data.select=8",
    "sampler.steps=2",
    "batch=4",
    "micro=2",
    "trackers=[]",
    "model.layers=2",
    "model.heads=2",
    "save.every=1",
    "save.keep=3",
    "evals=[test]",
)
PICTURES = (
    "steps=2",
    "model.steps=12",
    f"model.optim={SMOOTH}",
    f"actor.optim={SMOOTH}",
    "data.train=60",
    "data.test=8",
    "data.select=4",
    "rollout.prompts=4",
    "eval_every=1",
    "trackers=[]",
    "evals=[test]",
)
PAPERS = (
    "save.every=1",
    "trackers=[]",
    "evals=[test]",
    "eval_every=1",
    "model.hidden=48",
    "model.layers=2",
    "data.train=40",
    "data.select=4",
    "data.test=8",
    "sft.steps=3",
    "sft.batch=6",
    f"sft.policy.optim={SMOOTH}",
    "pairs.papers=12",
    "pairs.margin=0.0",
    "pairs.kinds={sampled: 1, similar: 1, none: 1, number: 1}",
    "pairs.sampling={n: 2, max_tokens: 24}",
    "score.max_tokens=24",
    "second.steps=3",
    "second.batch=5",
    f"second.policy.optim={SMOOTH}",
)
SWEEP = (
    "lr=[0.01, 0.02]",
    "batch=[8]",
    "held_out_rows=16",
    "cells=[{hidden: 32, intermediate: 96, layers: 1, heads: 4, tokens: 8192}]",
    "optim={type: adamw, eps: 1e-3}",
    "trackers=[]",
)
CHATS = (
    "model={hidden: 48, layers: 2, intermediate: 96}",
    "data.train=120",
    "data.pairs=24",
    "data.select=8",
    "data.test=8",
    "sft.steps=4",
    "dpo.steps=2",
    "dpo.batch=8",
    f"sft.policy.optim={SMOOTH}",
    f"dpo.policy.optim={SMOOTH}",
    "eval_every=2",
    "trackers=[]",
)


def alone(run: Path, config: str, *words: str) -> Path:
    ok(train(run, *words, config=config, report=True))
    return run


def sharded(run: Path, config: str, *words: str, count: int = 2) -> Path:
    for ended in fsdp.train(run, count, *words, config=config, report=True):
        ok(ended)
    return run


def exported(run: Path) -> dict[str, Any]:
    files = (*run.glob("model/*.safetensors"), *run.glob("model/transformer/*.safetensors"))
    return {f.name + name: value for f in files for name, value in load_file(f).items()}


def apart(a: Path, b: Path) -> float:
    """Largest difference of exported weights."""
    one, two = exported(a), exported(b)
    assert one.keys() == two.keys()
    assert one
    return max((one[name] - two[name]).abs().max().item() for name in one)


def follows(one: Path, two: Path, tolerance: float = 1e-4) -> None:
    for a, b in zip(rows(one), rows(two), strict=True):
        assert b == pytest.approx(a, rel=tolerance, abs=tolerance)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """stepvideo-tiny whole, by two processes: VAE, latents, DiT with its average, and an evaluation of one piece, of
    which the second process has nothing."""
    return sharded(tmp_path_factory.mktemp("video") / "two", "stepvideo-tiny", *VIDEO)


def test_stepvideo(video, tmp_path):
    one = alone(tmp_path / "one", "stepvideo-tiny", *VIDEO)
    follows(one / "vae", video / "vae")
    follows(one, video)
    assert apart(one, video) < 1e-5
    asked = [[row["score"] for row in samples(run, "after")] for run in (one, video)]
    assert len(asked[0]) == len(asked[1]) >= 6


def test_stepvideo_resumes_with_its_average(video, tmp_path):
    run = Path(shutil.copytree(video, tmp_path / "two"))
    for step in (2, 3):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "evals")
    killed = fsdp.train(
        run, 2, *VIDEO, config="stepvideo-tiny", hooks=((hooks.signal_in_step, "dit", 2, signal.SIGKILL),)
    )
    assert [ended.code for ended in killed] == [-signal.SIGKILL] * 2
    sharded(run, "stepvideo-tiny", *VIDEO)
    assert differences(checkpoint(run, 3), checkpoint(video, 3)) == []
    assert "average" in checkpoint(run, 3)["dit"]
    assert rows(run) == rows(video)
    assert differences(exported(run), exported(video)) == []


def test_stepvideo_goes_on_in_one_process(video, tmp_path):
    """The moving average is put together from two processes' shards."""
    run = Path(shutil.copytree(video, tmp_path / "two"))
    for step in (2, 3):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(run / "model")
    [ended] = fsdp.train(run, 1, *VIDEO, config="stepvideo-tiny")
    assert "1 processes go on where 2 stopped" in ok(ended).err
    follows(video, run)
    assert apart(video, run) < 1e-6


def test_stepvideo_shares_videos(video, tmp_path):
    """Two processes of one video, with sharded weights."""
    run = tmp_path / "shared"
    shutil.copytree(video / "vae", run / "vae")
    sharded(run, "stepvideo-tiny", *VIDEO, "context=2")
    follows(video, run)
    assert apart(video, run) < 1e-5


def test_video_dpo(video, tmp_path):
    words = (*VIDEO, f"model.start={video / 'model'}", "preference.conditions=12", "preference.margin=0.0", "batch=2")
    words = (*(word for word in words if not word.startswith("vae.")), "micro=1")
    one = alone(tmp_path / "one", "stepvideo-tiny-dpo", *words)
    run = tmp_path / "two"
    shutil.copytree(one / "latents", run / "latents")
    sharded(run, "stepvideo-tiny-dpo", *words)
    follows(one, run)
    assert apart(one, run) < 1e-5


@pytest.mark.parametrize("config", ["perception-tiny", "perception-tiny-detection"])
def test_perception(tmp_path, config):
    one, two = tmp_path / "one", tmp_path / "two"
    alone(one, config, *PICTURES)
    sharded(two, config, *PICTURES)
    follows(one / "base", two / "base")
    follows(one, two)
    assert apart(one, two) < 1e-5


def test_mdocsum(tmp_path):
    """Both stages, the pairs being sampled by both processes from the sharded first stage's model."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone(one, "mdocsum-tiny", *PAPERS)
    sharded(two, "mdocsum-tiny", *PAPERS)
    follows(one / "sft", two / "sft")
    assert (one / "pairs.jsonl").read_text() == (two / "pairs.jsonl").read_text()
    follows(one, two)
    assert apart(one, two) < 1e-5


def test_steplaw(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    alone(one, "steplaw-tiny", *SWEEP)
    sharded(two, "steplaw-tiny", *SWEEP)
    losses = [[float(row["loss"]) for row in csv.DictReader((run / "sweep.csv").open())] for run in (one, two)]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_stepaudio_of_a_published_model(tmp_path):
    """The 3B config with a tiny random model and the published codebooks' sizes: embeddings at five times the rate."""
    words = released.words(tmp_path)
    words = [word for word in words if not word.startswith(("launch=", "student.optim.lr="))]
    words += ["student.optim.lr=1e-3", "student.optim.eps=1e-3", "launch={nodes: 1, threads: 1}", "epochs=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone(one, "stepaudio-3b", *words, "launch={file: cpu, processes_per_node: 1}")
    sharded(two, "stepaudio-3b", *words)
    assert len(rows(one)) == 4
    follows(one, two)
    assert apart(one, two) < 1e-5


@pytest.mark.parametrize("words", [("dpo.reference=cached",), ("dpo.reference=model", "dpo.policy.lora={r: 2}")])
def test_chat(tmp_path, words):
    one, two = tmp_path / "one", tmp_path / "two"
    alone(one, "chat-tiny", *CHATS, *words)
    sharded(two, "chat-tiny", *CHATS, *words)
    follows(one / "sft", two / "sft")
    follows(one, two)
    assert apart(one, two) < 1e-5
