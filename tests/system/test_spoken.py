"""stepaudio on several processes, under FSDP2, and killed in each of its stages: the run that one process makes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.system import fsdp, hooks
from tests.system.processes import differences, ok, rows, train, train_ranks
from tests.takes import SHORT, make_tokens, toy_reward

CONFIG = "stepaudio-tiny"
STAGES = ("teacher", "student", "grpo")
# AdamW with an eps above most gradients: its steps are smooth in the gradients (tests/system/processes.py, SMOOTH).
SMOOTH = "{type: adamw, lr: 1e-2, eps: 1e-3}"
KILLS = {
    "teacher": (hooks.signal_in_folder, "teacher", 3, signal.SIGKILL),
    "engine": (hooks.kill_in_engine, 1),
    "student": (hooks.signal_in_folder, "student", 3, signal.SIGKILL),
    "grpo": (hooks.signal_in_folder, "grpo", 3, signal.SIGKILL),
}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> tuple[str, ...]:
    """Overrides of a short run with every stage, which nobody hears."""
    folder = tmp_path_factory.mktemp("tokens")
    return (
        *SHORT,
        f"tokens={make_tokens(folder)}",
        "judge=none",
        f"teacher.optim={SMOOTH}",
        f"student.optim={SMOOTH}",
        "distill={weight: 0.5, divergence: js}",
        f"rl={{steps: 4, prompts: 2, takes: 3, policy: {{optim: {SMOOTH}}}, reward: {toy_reward(folder)}}}",
    )


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory) -> Path:
    """All stages by one process that nobody disturbed."""
    run = tmp_path_factory.mktemp("alone") / "q"
    ok(train(run, *words, config=CONFIG, report=True))
    return run


def shards(run: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((run / "engine").glob("shard-*.json"))]


def exported(run: Path) -> dict[str, dict]:
    return {part: load_file(run / part / "model" / "model.safetensors") for part in ("teacher", "student", ".")}


def with_teacher(alone: Path, run: Path) -> Path:
    """The folder of a run that holds the teacher of another."""
    shutil.copytree(alone / "teacher" / "model", run / "teacher" / "model")
    return run


def follows(run: Path, one: Path, stages: tuple[str, ...]) -> None:
    """Metrics of stages and exported weights are those of one process, but for rounding."""
    for part in stages:
        for a, b in zip(rows(one / part), rows(run / part), strict=True):
            assert b == pytest.approx(a, rel=1e-4, abs=1e-4), (part, a["step"])
    mine, its = exported(run), exported(one)
    for part in its:
        assert max((mine[part][name] - value).abs().max() for name, value in its[part].items()) < 1e-5, part


def test_it_learns_something(alone):
    """Else all that follows would prove nothing."""
    teacher, student, grpo = (rows(alone / part) for part in STAGES)
    assert teacher[-1]["loss"] < teacher[0]["loss"] - 0.01
    assert student[-1]["policy/nll"] < student[0]["policy/nll"] - 0.01
    assert student[0]["policy/divergence"] > 1e-6
    assert len(grpo) == 5
    assert any(row["actor/grad_norm"] > 1e-3 for row in grpo[1:])
    assert len(shards(alone)) == 3


@pytest.mark.parametrize("stage", KILLS)
def test_killed_and_resumed_it_is_the_same_run(alone, words, tmp_path, stage):
    run = tmp_path / "q"
    assert train(run, *words, config=CONFIG, report=True, hooks=[KILLS[stage]]).code == -signal.SIGKILL
    assert len(shards(run)) == {"teacher": 0, "engine": 1}.get(stage, 3)
    assert not (run / "model").exists()
    resumed = ok(train(run, *words, config=CONFIG, report=True))
    assert ("resumed from" in resumed.err) == (stage != "engine")
    for part in STAGES:
        assert differences(rows(run / part), rows(alone / part)) == []
    assert shards(run) == shards(alone)
    assert differences(exported(run), exported(alone)) == []


def test_two_processes_write_the_same_shards_and_follow_one(alone, words, tmp_path):
    run = with_teacher(alone, tmp_path / "q")
    for ended in train_ranks(run, 2, *words, config=CONFIG, report=True):
        ok(ended)
    assert shards(run) == shards(alone)
    follows(run, alone, ("student", "grpo"))


def test_sharded_models_follow_whole_ones(alone, words, tmp_path):
    """Teacher, student beside the frozen teacher, and GRPO, each on two shards."""
    run = tmp_path / "q"
    for ended in fsdp.train(run, 2, *words, config=CONFIG, report=True):
        ok(ended)
    follows(run, alone, STAGES)
