"""SFT and DPO on several processes, under FSDP2, and killed: the run that one process makes undisturbed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stepstack.config import ROOT
from tests.system import fsdp, hooks
from tests.system.processes import differences, ok, rows, train, train_ranks

CHAT = str(ROOT / "configs" / "chat-tiny.yaml")
# AdamW with an eps above most gradients: its steps are smooth in the gradients (tests/system/processes.py, SMOOTH).
SMOOTH = "{type: adamw, lr: 3e-3, eps: 1e-3}"
SMALL = (
    *("model.hidden=32", "model.layers=2", "model.intermediate=64"),
    *("data.train=64", "data.pairs=24", "data.select=6", "data.test=8"),
    *("sft.steps=4", "sft.batch=8", f"sft.policy.optim={SMOOTH}"),
    *("dpo.steps=4", "dpo.batch=6", f"dpo.policy.optim={SMOOTH}"),
    *("eval_every=2", "save.every=2", "evals=[test]", "trackers=[]"),
)
LORA = ("dpo.policy.lora={r: 4}", "dpo.reference=model")
FIGURES = ("loss", "policy/loss", "policy/grad_norm", "policy/chosen_logp", "policy/margin", "eval/loss")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Both stages by one process."""
    run = tmp_path_factory.mktemp("alone") / "q"
    ok(train(run, *SMALL, config=CHAT, report=True))
    return run


PAPERS = str(ROOT / "configs" / "mdocsum-tiny.yaml")
PICTURES = (
    *("model.hidden=48", "model.layers=2", "model.intermediate=64", "model.tower=32"),
    *("data.train=24", "data.select=4", "data.test=6", "pairs.papers=10", "pairs.margin=0.0"),
    "pairs.kinds={similar: 1, exchanged: 1, none: 1}",  # not samples, which a rounding may change
    *("pairs.sampling={n: 2, max_tokens: 8}", "score.max_tokens=8"),
    *("sft.steps=4", "sft.batch=8", f"sft.policy.optim={SMOOTH}"),
    *("second.steps=4", "second.batch=6", f"second.policy.optim={SMOOTH}"),
    *("eval_every=2", "save.every=2", "evals=[test]", "trackers=[]"),
)


@pytest.fixture(scope="module")
def papers(tmp_path_factory) -> Path:
    """Both stages of a model with eyes by one process."""
    run = tmp_path_factory.mktemp("papers") / "q"
    ok(train(run, *PICTURES, config=PAPERS, report=True))
    return run


@pytest.mark.parametrize("ranks", [train_ranks, fsdp.train], ids=["ddp", "fsdp2"])
def test_with_pictures_two_processes_follow_one(papers, tmp_path, ranks):
    run = tmp_path / "q"
    for ended in ranks(run, 2, *PICTURES, config=PAPERS, report=True):
        ok(ended)
    follows(run, papers)


def test_as_a_cluster_has_it_two_processes_follow_one(tmp_path):
    """As mdocsum-7b-dpo is: bf16, sharded, gradient checkpointing, a shared prompt; the reference within its bound."""
    words = (*PICTURES, "precision=bf16", "layout.share_prompts=true", "second.policy.gradient_checkpointing=true")
    one, run = tmp_path / "one", tmp_path / "many"
    ok(train(one, *words, config=PAPERS, report=True))
    for ended in fsdp.train(run, 2, *words, config=PAPERS, report=True):
        ok(ended)
    for a, b in zip(rows(one)[1:], rows(run)[1:], strict=True):
        for name in ("loss", "policy/chosen_logp", "policy/rejected_logp"):
            assert b[name] == pytest.approx(a[name], rel=2e-2), (a["step"], name)
    assert rows(run)[1]["policy/log_ratio_abs_max"] < 0.5
    assert abs(rows(run)[-1]["policy/chosen_reward"]) > 1e-3


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_with_pictures_killed_and_resumed_it_is_the_same_run(papers, tmp_path, stage):
    run = tmp_path / "q"
    hook = (hooks.signal_in_stage, stage, 3, signal.SIGKILL)
    assert train(run, *PICTURES, config=PAPERS, report=True, hooks=[hook]).code == -signal.SIGKILL
    ok(train(run, *PICTURES, config=PAPERS, report=True))
    same(run, papers)


def follows(run: Path, one: Path) -> None:
    """Metrics and exported weights are those of one process, but for rounding."""
    for part in ("sft", "."):
        for a, b in zip(rows(one / part), rows(run / part), strict=True):
            assert a.keys() == b.keys()
            for name in FIGURES:
                if name in a:
                    assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-4), (part, a["step"], name)
        weights = load_file(one / part / "model" / "model.safetensors")
        for name, value in load_file(run / part / "model" / "model.safetensors").items():
            assert (value - weights[name]).abs().max() < 1e-5, (part, name)


def same(run: Path, one: Path) -> None:
    """Metrics and exported weights are equal to the bit."""
    for part in ("sft", "."):
        assert differences(rows(run / part), rows(one / part)) == []
        a, b = (load_file(folder / part / "model" / "model.safetensors") for folder in (run, one))
        assert differences(a, b) == []


def test_it_learns_something(alone):
    """Else all that follows would prove nothing."""
    sft, dpo = rows(alone / "sft"), rows(alone)
    assert sft[-1]["loss"] < sft[1]["loss"] - 0.2
    assert abs(dpo[1]["policy/margin"]) < 1e-5
    assert abs(dpo[-1]["policy/chosen_reward"]) > 1e-3


def test_two_processes_follow_one(alone, tmp_path):
    run = tmp_path / "q"
    for ended in train_ranks(run, 2, *SMALL, config=CHAT, report=True):
        ok(ended)
    follows(run, alone)


def test_two_sharded_processes_follow_one(alone, tmp_path):
    run = tmp_path / "q"
    for ended in fsdp.train(run, 2, *SMALL, config=CHAT, report=True):
        ok(ended)
    follows(run, alone)


def test_three_sharded_processes_with_adapters_follow_one(tmp_path):
    """The reference is the policy without its adapters, on shards; the adapters are gathered for the export."""
    one, run = tmp_path / "one", tmp_path / "many"
    ok(train(one, *SMALL, *LORA, config=CHAT, report=True))
    for ended in fsdp.train(run, 3, *SMALL, *LORA, config=CHAT, report=True):
        ok(ended)
    follows(run, one)
    adapters = load_file(one / "model-adapter" / "adapter_model.safetensors")
    gathered = load_file(run / "model-adapter" / "adapter_model.safetensors")
    assert gathered.keys() == adapters.keys()
    assert all((gathered[name] - value).abs().max() < 1e-5 for name, value in adapters.items())
    assert any(value.abs().max() > 1e-4 for name, value in adapters.items() if "lora_B" in name)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_killed_in_a_stage_and_resumed_it_is_the_same_run(alone, tmp_path, stage):
    run = tmp_path / "q"
    killed = train(run, *SMALL, config=CHAT, report=True, hooks=[(hooks.signal_in_stage, stage, 3, signal.SIGKILL)])
    assert killed.code == -signal.SIGKILL
    assert (run / "sft" / "model").is_dir() == (stage == "dpo")
    resumed = ok(train(run, *SMALL, config=CHAT, report=True))
    assert "resumed from" in resumed.err
    same(run, alone)


def test_a_reference_of_other_weights_is_one_error(alone, tmp_path):
    run = tmp_path / "q"
    ok(train(run, *SMALL, "--stop-after", "1", config=CHAT, report=True))
    file = run / "reference.json"
    kept = json.loads(file.read_text())
    kept["key"]["weights"] = "0" * 64
    file.write_text(json.dumps(kept))
    refused = train(run, *SMALL, config=CHAT, report=True)
    assert refused.code == 2
    assert f"{file} holds the reference's log-probabilities for other weights: delete it" in refused.err
    assert "Traceback" not in refused.err
