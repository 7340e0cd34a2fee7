"""What the stages of an earlier run took: of which runs and records it is taken, and of which not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes.orz.config import Config
from recipes.protocol import load_config
from stepstack.config import Launch, to_dict
from stepstack.core.stage_times import seconds_by_stage

STAGES = {"base": "SFT", "": "PPO"}
FINISHED = {"state": "finished", "stages": STAGES, "time": "2026-11-27T10:00:00+00:00"}


def write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def write_rows(folder: Path, seconds: Sequence[float], first: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"step": step, "time/step": time}) + "\n" for step, time in enumerate(seconds, first))
    (folder / "metrics.jsonl").write_text("".join(lines))


@pytest.fixture
def config(tmp_path) -> Config:
    """Of the run that asks, which has begun: nothing of it is finished."""
    config = load_config("orz-tiny", [f"dir={tmp_path / 'runs'}", "name=now", "steps=4"])
    write_json(config.folder / "config.json", {"config": to_dict(config), "files": {}})
    write_json(config.folder / "status.json", FINISHED | {"state": "running"})
    return config


def add_run(now: Config, name: str, status: dict[str, Any] = FINISHED, **changes: Any) -> dict[str, Any]:
    """An earlier run, whose SFT took 6 seconds, whose PPO a second before its four steps and 10 in them. Its config."""
    values = to_dict(replace(now, name=name, seed=7, trackers=())) | changes
    folder = now.folder.parent / name
    write_json(folder / "config.json", {"config": values, "files": {}})
    write_json(folder / "status.json", status)
    write_rows(folder / "base", [2.0, 4.0], first=1)
    write_rows(folder, [1.0, 1.0, 2.0, 3.0, 4.0], first=0)
    return values


def look(config: Config, stages: dict[str, str] = STAGES) -> dict[str, float]:
    """What it finds without the repository's own records."""
    return seconds_by_stage(config.folder, config, stages, root=config.folder.parent)


def add_record(config: Config, **changes: Any) -> None:
    values = to_dict(replace(config, name="orz-tiny-seed1", seed=1)) | changes
    record = {"kind": "run", "config": values, "files": {}, "cpu_s_by_stage": [90.0, 120.0]}
    write_json(config.folder.parent / "evals" / "results" / "orz-tiny-seed1.json", record)


def test_the_newest_finished_run_of_the_same_work_tells(config):
    assert look(config) == {}
    add_run(config, "old", FINISHED | {"time": "2026-11-26T10:00:00+00:00"})
    assert look(config) == {"base": 6.0, "": 11.0}
    add_run(config, "new")
    write_rows(config.folder.parent / "new" / "base", [30.0], first=1)
    assert look(config) == {"base": 30.0, "": 11.0}
    assert look(config, {"": "PPO"}) == {}  # nothing comes after a stage that is alone


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (FINISHED | {"state": "stopped"}, {}),
        (FINISHED | {"stages": {"": "PPO"}}, {}),
        (FINISHED, {"critic_updates": 3}),
        (FINISHED, {"launch": to_dict(Launch(processes_per_node=2))}),
        (FINISHED, {"a_key_of_before": 1}),
    ],
)
def test_other_runs_do_not(config, status, changes):
    add_run(config, "other", status, **changes)
    assert look(config) == {}


def test_a_run_that_read_other_files_does_not(config):
    values = add_run(config, "other")
    write_json(config.folder.parent / "other" / "config.json", {"config": values, "files": {"rows.jsonl": "0" * 64}})
    assert look(config) == {}


def test_a_run_of_before_a_key_was_there_had_its_default(config):
    values = add_run(config, "old")
    del values["critic"]["optim"]["lr_factors"]
    write_json(config.folder.parent / "old" / "config.json", {"config": values, "files": {}})
    assert look(config) == {"base": 6.0, "": 11.0}
    changed = replace(config, critic=replace(config.critic, optim=replace(config.critic.optim, lr_factors={"lm": 2.0})))
    write_json(config.folder / "config.json", {"config": to_dict(changed), "files": {}})
    assert look(changed) == {}


@pytest.mark.parametrize(("steps", "seconds"), [(2, 4.0), (4, 11.0), (8, 22.0)])
def test_more_or_fewer_steps_of_the_runs_own_stage_take_as_much_longer(config, steps, seconds):
    add_run(config, "earlier")
    asks = replace(config, steps=steps)
    write_json(config.folder / "config.json", {"config": to_dict(asks), "files": {}})
    assert look(asks) == {"base": 6.0, "": seconds}


def test_a_run_without_a_stage_of_its_own_must_have_the_same_steps(config):
    stages = {"base": "SFT", "grpo": "GRPO"}
    add_run(config, "earlier", FINISHED | {"stages": stages}, steps=8)
    write_rows(config.folder.parent / "earlier" / "grpo", [5.0], first=1)
    assert look(config, stages) == {}
    add_run(config, "earlier", FINISHED | {"stages": stages})
    assert look(config, stages) == {"base": 6.0, "grpo": 5.0}


def test_a_record_tells_where_no_run_does_and_one_core_does_all_work(config):
    add_record(config, steps=8)
    assert look(config) == {"base": 90.0, "": 60.0}
    add_run(config, "earlier")
    assert look(config) == {"base": 6.0, "": 11.0}


@pytest.mark.parametrize(("name", "processes"), [("orz-tiny", 2), ("orz-tiny-async", 1)])
def test_cpu_seconds_of_one_of_several_processes_are_no_time(config, name, processes):
    """Not where others train too, nor where workers make the rollouts."""
    streamed = load_config(name, [f"dir={config.dir}", "name=now"])
    asks = replace(streamed, launch=Launch(processes_per_node=processes))
    write_json(config.folder / "config.json", {"config": to_dict(asks), "files": {}})
    add_record(asks)
    assert look(asks) == {}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("broken/status.json", "{", "broken/status.json"),
        ("broken/config.json", "{", "broken/config.json"),
        ("broken/config.json", '{"config": [], "files": {}}', "broken/config.json"),
        ("broken/base/metrics.jsonl", '{"step": 1}\n', "broken/config.json"),
        ("broken/metrics.jsonl", "not JSON\n", "broken/config.json"),
        ("evals/results/orz-broken.json", "[]", "evals/results/orz-broken.json"),
    ],
)
def test_a_broken_file_is_said_and_passed_over(config, caplog, file, text, said):
    add_record(config)
    if file.startswith("broken"):
        add_run(config, "broken")
    runs = config.folder.parent
    (runs / file).write_text(text)
    assert look(config) == {"base": 90.0, "": 120.0}
    assert f"{runs / said} does not tell how long stages take" in caplog.text
