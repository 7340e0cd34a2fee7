"""What trackers are given of a run, and that a curve has no step twice after a resume. Each tracker keeps its files in
the test's folder; wandb and trackio are not among the repository's packages: pip install --no-deps them to run all."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes.protocol import load_config
from stepstack.cli import main as cli
from stepstack.config import ConfigError, Save, Tracking
from stepstack.core import preflight
from stepstack.core.run import Run, stage
from stepstack.core.trackers import hyperparameters
from stepstack.rl.config import PpoConfig

ABSENT = "dvclive"  # a tracker that nothing here brings
TRACKING = Tracking(project="mine", group="sweep", tags=("a", "b"))


def config(folder: Path, *trackers: Any, name: str = "run") -> PpoConfig:
    given = {"steps": 6, "eval_every": 0, "peak_tflops": 1.0, "save": Save(every=2)}
    return PpoConfig(recipe="test", dir=str(folder), name=name, trackers=trackers, tracking=TRACKING, **given)


def train(run: Run, until: int) -> None:
    """Steps up to ``until``, without the checkpoint of an end: as of a run that is killed behind its row."""
    for step in run.steps(6):
        run.log(reward=float(step))
        if step == until:
            break
    run.trackers.finish()


def resumed(folder: Path, tracker: str) -> None:
    """Killed in step 4, so that row 3 is computed again; killed again in the same step; then finished."""
    for until in (3, 3, 9):
        run = Run(config(folder, tracker))
        train(run, until)
    assert run.resumed_from == 2


def test_tensorboard_has_each_step_once_and_the_config(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    resumed(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("reward")] == [1, 2, 3, 4, 5, 6]
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"tracking.project" in content
    assert b"actor.optim.lr" in content


def test_a_run_that_begins_again_from_nothing_purges_all_of_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(Run(config(tmp_path, "tensorboard")), 1)
    train(Run(config(tmp_path, "tensorboard")), 9)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("reward")] == [1, 2, 3, 4, 5, 6]


def test_wandb_has_each_step_once_in_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed", exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    resumed(tmp_path, "wandb")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    records = [record for file in files for record in wandb_records(file)]
    steps = [record.history.step.num for record in records if record.HasField("history")]
    assert steps == [1, 2, 3, 4, 5, 6]
    runs = [record.run for record in records if record.HasField("run")]
    run_id = json.loads((tmp_path / "run" / "trackers.json").read_text())["id"]
    assert {(run.run_id, run.project, run.display_name, run.run_group) for run in runs if run.display_name} == {
        (run_id, "mine", "run", "sweep")
    }
    assert set(runs[0].tags) == {"a", "b"}
    values = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert values["actor.optim.lr"] == 1e-6


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of an offline file: a header of 7 bytes, then LevelDB's log of blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, part = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_trackio_has_each_step_once_in_one_run(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="trackio is not installed", exc_type=ImportError)
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):  # it reads TRACKIO_DIR once, when it is imported
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    resumed(tmp_path, "trackio")
    run_id = json.loads((tmp_path / "run" / "trackers.json").read_text())["id"]
    with sqlite3.connect(tmp_path / "trackio" / "mine.db") as base:
        rows = base.execute("select run_name, step from metrics order by rowid").fetchall()
        assert rows == [(f"run-{run_id}", step) for step in range(1, 7)]
        [values] = {text for (text,) in base.execute("select config from configs")}
    assert json.loads(values)["actor.optim.lr"] == 1e-6


def test_a_stage_is_a_run_of_its_own(tmp_path):
    run = Run(config(tmp_path, "tensorboard"))
    inner = stage(run, "sft")
    assert inner.trackers.label == "run-sft"
    train(inner, 9)
    train(run, 9)
    ids = [json.loads((folder / "trackers.json").read_text())["id"] for folder in (run.dir, inner.dir)]
    assert ids[0] != ids[1]
    assert (inner.dir / "tensorboard").is_dir()


def test_a_tracker_that_comes_later_gets_all_steps_from_there(tmp_path):
    """What was logged before it was there is no reason to keep a step from it."""
    train(Run(config(tmp_path)), 3)
    train(Run(config(tmp_path, "tensorboard")), 3)
    run = Run(config(tmp_path, "tensorboard"))
    assert run.resume() == 2
    assert run.trackers.last_steps == {"tensorboard": 3}


def test_hyperparameters_are_scalars_by_dotted_keys(tmp_path):
    values = hyperparameters(config(tmp_path, "tensorboard"))
    assert values["trackers"] == '["tensorboard"]'
    assert values["tracking.tags"] == '["a", "b"]'
    assert {type(value) for value in values.values()} <= {bool, int, float, str, type(None)}


@pytest.mark.parametrize("words", [["train"], ["train", "--dry-run"], ["config"], ["launch"]])
def test_a_tracker_without_its_package_is_refused_with_the_line_that_installs_it(words, tmp_path, capsys):
    line = [words[0], "orz-tiny", f"dir={tmp_path}", f"trackers=[{ABSENT}]", *words[1:]]
    assert cli.main(line) == 2
    said = capsys.readouterr().err
    assert f"trackers: the package {ABSENT} is not installed: pip install -c constraints.txt {ABSENT}" in said
    assert list(tmp_path.iterdir()) == []


def test_a_launch_that_is_only_printed_says_what_is_missing(capsys):
    assert cli.main(["launch", "orz-tiny", f"trackers=[{ABSENT}]", "--dry-run"]) == 0
    assert f"# trackers: the package {ABSENT} is not installed" in capsys.readouterr().out


def test_a_folder_of_a_packages_name_is_no_package(tmp_path, monkeypatch):
    """W&B leaves a folder wandb/ where it was started, which Python takes for a package without files."""
    (tmp_path / ABSENT).mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=f"the package {ABSENT} is not installed"):
        preflight.refuse_trackers(load_config("orz-tiny", [f"trackers=[{ABSENT}]"]))
    assert preflight.installed("tensorboard")
