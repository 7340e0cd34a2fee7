"""A checkpoint that is not whole is passed over, said and counted; a folder is never taken from another run."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from stepstack.core import checkpoint
from tests.system import hooks
from tests.system.processes import differences, ok, rows, samples, train, trajectory


def steps(run: Path) -> list[int]:
    return [step for step, _ in checkpoint.newest_first(run / "checkpoints")]


def fallbacks(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["checkpoint_fallbacks"] for line in lines]


def cut(folder: Path) -> None:
    file = folder / "actor" / "__0_0.distcp"
    os.truncate(file, file.stat().st_size // 2)


def no_manifest(folder: Path) -> None:
    (folder / checkpoint.MANIFEST).unlink()


def flipped(name: str, where: float) -> None:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        at = int(len(content) * where)
        content[at : at + 4] = bytes(byte ^ 0xFF for byte in content[at : at + 4])
        (folder / name).write_bytes(content)

    damage.__name__ = f"flipped {name}"
    return damage


def gone(folder: Path) -> None:
    (folder / "critic" / "__0_0.distcp").unlink()


DAMAGES = (cut, no_manifest, flipped("actor/__0_0.distcp", 0.7), flipped(checkpoint.MANIFEST, 0.5), gone)


@pytest.fixture(scope="module")
def three(whole, tmp_path_factory) -> Path:
    """Stopped after step 3 with checkpoints of steps 2 and 3."""
    run = tmp_path_factory.mktemp("three") / "q"
    shutil.copytree(whole / "base" / "model", run / "base" / "model")
    ok(train(run, "--stop-after", "3", "save.every=1", hooks=[(hooks.record, run.parent / "q-rollouts.jsonl")]))
    assert steps(run) == [3, 2]
    return run


@pytest.fixture
def stopped(three, tmp_path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "q"))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_what_is_wrong_is_found(stopped, damage):
    folder = stopped / "checkpoints" / "step-00000003"
    assert checkpoint.problem(folder) is None
    damage(folder)
    assert checkpoint.problem(folder)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"files": 3}', '{"files": {"a": 3}}', '{"files": {"a": {}}}', "", "\0"]
)
def test_any_manifest_is_only_a_problem(tmp_path, content):
    (tmp_path / "a").write_text("x")
    (tmp_path / checkpoint.MANIFEST).write_text(content)
    assert checkpoint.problem(tmp_path)


def test_falls_back_to_the_one_before(stopped, whole):
    cut(stopped / "checkpoints" / "step-00000003")
    resumed = ok(train(stopped, hooks=[(hooks.record, stopped.parent / "q-rollouts.jsonl")]))
    assert "step-00000003 is not whole (actor/__0_0.distcp has" in resumed.err
    assert "step-00000002" in resumed.err.partition("resumed from")[2]
    assert fallbacks(stopped) == [0, 0, 0, 1, 1]
    assert differences(trajectory(stopped, 4), trajectory(whole, 4)) == []


def test_a_torn_one_does_not_push_out_a_whole_one(stopped):
    """Gone back from step 3 to 2 with keep=1, the next save must leave itself, not the torn later one."""
    no_manifest(stopped / "checkpoints" / "step-00000003")
    shutil.copytree(stopped / "checkpoints" / "step-00000003", stopped / "checkpoints" / "step-00000009")
    ok(train(stopped, "--stop-after", "3", "save.every=1", "save.keep=1"))
    assert steps(stopped) == [3]
    assert checkpoint.problem(stopped / "checkpoints" / "step-00000003") is None


def test_all_torn_starts_from_scratch(stopped, whole):
    for step in (2, 3):
        cut(stopped / "checkpoints" / f"step-{step:08d}")
    again = ok(train(stopped, hooks=[(hooks.record, stopped.parent / "q-rollouts.jsonl")]))
    assert again.err.count("is not whole") == 2
    assert "no whole checkpoint is left: starting from step 0" in again.err
    assert fallbacks(stopped) == [2] * 5
    assert differences(trajectory(stopped, 4), trajectory(whole, 4)) == []


def test_keeps_the_newest(three, whole):
    assert steps(three) == [3, 2]
    assert steps(whole) == [4, 2]
    assert not list((whole / "checkpoints").glob(".partial-*"))


def test_finish_is_one_rename(tmp_path, monkeypatch):
    """Until the rename there is no checkpoint; the manifest is the last file written."""
    partial, final = tmp_path / ".partial-1", tmp_path / "step-00000001"
    partial.mkdir()
    (partial / "weights").write_bytes(b"w" * 100)
    rename, seen = Path.rename, []

    def renamed(self, target):
        seen.append((final.exists(), checkpoint.problem(self)))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    checkpoint.finish(partial, final, {"step": 1})
    assert seen == [(False, None)]
    assert checkpoint.problem(final) is None
    assert not partial.exists()


def everything(run: Path) -> dict[str, tuple[int, bytes]]:
    return {str(f): (f.stat().st_mtime_ns, f.read_bytes()) for f in sorted(run.rglob("*")) if f.is_file()}


def test_a_folder_of_another_config_is_refused_and_untouched(stopped):
    before = everything(stopped)
    refused = train(stopped, "seed=7", "actor.optim.lr=9e-4", "rollout.sampling.n=4", "save.keep=1")
    assert refused.code == 2
    assert "Traceback" not in refused.err
    changed = re.findall(r"^  (\S+): \S+ -> (\S+)$", refused.err, re.M)
    assert changed == [("actor.optim.lr", "0.0009"), ("rollout.sampling.n", "4"), ("seed", "7")]
    assert everything(stopped) == before


def test_free_keys_may_change(stopped, whole):
    words = ("save.every=3", "save.keep=1", "trackers=[tensorboard]", "peak_tflops=0.5", "launch.port=29511")
    resumed = ok(train(stopped, *words, hooks=[(hooks.record, stopped.parent / "q-rollouts.jsonl")]))
    assert "step-00000003" in resumed.err
    assert differences(trajectory(stopped, 4), trajectory(whole, 4)) == []
    assert list(stopped.rglob("events.out.tfevents.*"))


def test_a_finished_run_only_reports_again(whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "q"))
    first = rows(run), everything(run / "checkpoints"), samples(run, "after")
    again = ok(train(run, report=True))
    assert (rows(run), everything(run / "checkpoints"), samples(run, "after")) == first
    assert (run / "report.html").is_file()
    assert "held-out problems" in again.out
