"""SFT of a vision-language model over the ranks of a pipeline: the weights of one process, resumed bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stepstack.planning.pipeline.timeline import recorded
from stepstack.report import jsonl
from tests.system import hooks
from tests.system.processes import CLOCK, Ended, ok, stepstack, train_ranks

CONFIG = "perception-tiny-pipeline"
SMALL = (
    *("steps=1", "eval_every=0", "trackers=[]", "evals=[]", "save.every=2"),
    *("model.steps=5", "model.batch=6", "model.hidden=48", "model.layers=2", "model.intermediate=64"),
    *("model.tower=32", "data.train=40", "data.select=4", "data.test=4", "layout.max_tokens=64"),
    *("rollout.prompts=4", "rollout.sampling.n=4", "rollout.sampling.max_tokens=8"),
    "model.optim={type: adamw, lr: 1e-3, eps: 1e-3}",  # smooth in the gradients, see processes.SMOOTH
)


def pipelined(run: Path, count: int, *words: str, **how) -> list[Ended]:
    return train_ranks(run, count, *SMALL, *words, config=CONFIG, **how)


def base(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "base" / "model" / "model.safetensors")


def stage_rows(run: Path) -> list[dict]:
    read = jsonl.read(run / "base" / "metrics.jsonl")
    return [
        {k: v for k, v in row.items() if not k.startswith((*CLOCK, "pipeline/plan_s", "pipeline/bubble"))}
        for row in read
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """One process, without a pipeline."""
    run = tmp_path_factory.mktemp("whole") / "q"
    words = ("model.pipeline=null", "launch.file=cpu", "launch.processes_per_node=1")
    ok(stepstack(run, *SMALL, *words, config=CONFIG).wait())
    return run


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Path:
    """Two ranks, with a checkpoint at each step of the stage."""
    run = tmp_path_factory.mktemp("halves") / "q"
    for ended in pipelined(run, 2, "evals=[test]", report=True):
        ok(ended)
    return run


def alike(run: Path, whole: Path) -> None:
    ours, theirs = base(run), base(whole)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    for mine, other in zip(stage_rows(run), stage_rows(whole), strict=True):
        assert mine["tokens"] == other["tokens"]
        for name in ("loss", "policy/grad_norm", "policy/entropy"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4)


def test_two_ranks_learn_the_weights_of_one_process_and_go_on_to_grpo(whole, halves):
    alike(halves, whole)
    assert jsonl.read(halves / "metrics.jsonl")[-1]["step"] == 1
    assert [row["pipeline/microbatches"] for row in stage_rows(halves)] == [3.0] * 5


def test_the_times_of_the_last_batchs_passes_are_kept(halves):
    kept = jsonl.read_json(halves / "base" / "passes.json", "measured", "simulated")
    measured, simulated = recorded(kept["measured"]), recorded(kept["simulated"])
    assert (kept["step"], measured.plan.digest) == (4, simulated.plan.digest)
    assert set(measured.times) == set(measured.plan.graph.actions)
    for action, (begin, _) in measured.times.items():
        for source in measured.plan.graph.needs(action):  # clocks of ranks begin together, but for a message's time
            assert measured.times[source][1] <= begin + 0.05, (source, action)
    assert 0 < measured.bubble < 1
    assert "Passes of a pipeline's ranks in step 4 of base, measured" in (halves / "report.html").read_text().replace(
        "&#x27;", "'"
    )


def test_two_pipelines_of_two_ranks_share_the_rows(whole, tmp_path):
    for ended in pipelined(tmp_path / "q", 4):
        ok(ended)
    alike(tmp_path / "q", whole)


def test_m_docsum_is_tuned_over_a_pipeline_and_watched_as_a_whole_model(tmp_path):
    small = ("model.hidden=48", "model.layers=2", "model.intermediate=64", "model.tower=32", "score.max_tokens=8")
    few = ("data.train=20", "data.select=4", "data.test=4", "sft.steps=2", "sft.batch=4", "second=null", "evals=[]")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    adam = "sft.policy.optim={type: adamw, lr: 1e-3, eps: 1e-3}"
    words = (*small, *few, adam, "trackers=[]", "eval_every=1", "launch.file=cpu")
    ok(stepstack(whole, *words, config="mdocsum-tiny").wait())
    for ended in train_ranks(halves, 2, *words[:-1], "sft.pipeline={ranks: 2}", config="mdocsum-tiny"):
        ok(ended)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (halves, whole))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6)
    assert len(jsonl.read(halves / "metrics.jsonl")) == len(jsonl.read(whole / "metrics.jsonl")) == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_and_the_run_resumes_bit_for_bit(halves, tmp_path, rank):
    run = tmp_path / "q"
    killed = (hooks.signal_in_folder, "base", 3, signal.SIGKILL)
    for ended in pipelined(run, 2, rank_hooks={rank: [killed]}):
        assert ended.code != 0
    if rank == 0:
        one = ("model.pipeline=null", "launch.file=cpu", "launch.processes_per_node=1")
        refused = stepstack(run, *SMALL, *one, config=CONFIG).wait()
        assert refused.code != 0
        assert "model.pipeline.ranks: 2 -> (absent)" in refused.err
    for ended in pipelined(run, 2):
        ok(ended)
    ours, theirs = base(run), base(halves)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert stage_rows(run) == stage_rows(halves)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "pipeline.ranks=2 does not divide the 1 processes of this run"),
        (("model.pipeline.cap=1e6",), "set profile to a file of `stepstack profile pipeline`"),
    ],
)
def test_what_cannot_be_a_pipeline_is_one_error(tmp_path, words, why):
    alone = ("launch.file=cpu", "launch.processes_per_node=1")
    ended = stepstack(tmp_path / "q", *SMALL, *alone, *words, config=CONFIG).wait()
    assert ended.code == 2
    assert why in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("model.layers=1", "module text has 1 layers for 2 chunks"),
        ("model.pipeline.profile=none.json", "none.json does not exist"),
        ("model.pipeline.segments={sound: 1}", "has no module sound"),
    ],
)
def test_what_a_rank_cannot_train_is_one_error(tmp_path, word, why):
    for ended in pipelined(tmp_path / "q", 2, word):
        assert ended.code == 2
        assert why in ended.err
        assert "Traceback" not in ended.err
