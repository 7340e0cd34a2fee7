"""The report of a run from its folder, and the index of several."""

from __future__ import annotations

import json

from stepstack.cli import main as cli
from stepstack.core.live_report import LiveReport
from stepstack.harness.training import history, outcome
from stepstack.report import jsonl
from tests import tools

SOURCE = {
    "time": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "dirty": True,
    "host": {"cpu": "a <cpu>", "cores": 2, "memory_gib": 4.0, "system": "s"},
    "python": "3",
    "versions": {"torch": "2"},
}


def run_folder(runs, name):
    """A run of two stages, which was evaluated before and after."""
    folder = runs / name
    config = {"name": name, "recipe": "orz", "evals": ["second", "first"], "seed": 1, "model": {"type": "<tiny>"}}
    for place, rows in (
        ("base", [{"step": 1, "loss": 2.0, "tokens": 1000.0, "cpu_s": 3.0, "time/step": 2.0}]),
        ("", []),
    ):
        jsonl.write_json_atomic(folder / place / "config.json", {"config": config, "provenance": SOURCE})
        jsonl.append(folder / place / "metrics.jsonl", *rows)
    jsonl.append(folder / "metrics.jsonl", {"step": 0, "eval/accuracy": 0.1}, {"step": 1, "reward": 0.5, "cpu_s": 4.0})
    for when, values in (("before", (0.25, 0.5)), ("after", (0.75, 0.5))):
        for task, value in zip(("second", "first"), values, strict=True):
            result = tools.result_of(task, value)
            jsonl.write_json_atomic(folder / "evals" / when / task / "result.json", result)
            jsonl.write_rows_atomic(folder / "evals" / when / task / "samples.jsonl", [])
    live = LiveReport(folder, outcome.write, "a model <learns>", {"base": "SFT", "": "PPO"}, f"stepstack launch {name}")
    return folder, live


def test_a_finished_run_says_what_came_of_it_and_is_in_the_index(tmp_path):
    page = run_folder(tmp_path, "a [run] <1>")[1].end("finished")
    text = page.read_text()
    for words in (
        "0.250 → 0.750",
        "avg@1 on second",
        "1k",
        "7 CPU-s",
        "a model &lt;learns&gt;",
        'data-state="finished"',
    ):
        assert words in text, words
    for words in (
        "stepstack launch a [run] &lt;1&gt;",
        "stepstack report a [run]",
        "0123456789ab+changes",
        "&lt;tiny&gt;",
    ):
        assert words in text, words
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in text
    all_runs = (tmp_path / "index.html").read_text()
    for words in (
        "a [run] &lt;1&gt;</a>",
        "0.250 → 0.750",
        "finished",
        "01234567+changes",
        "a%20%5Brun%5D%20%3C1%3E/report",
    ):
        assert words in all_runs, words


def test_a_run_that_goes_on_or_failed_says_so(tmp_path, monkeypatch):
    folder, live = run_folder(tmp_path, "q")
    monkeypatch.setattr("stepstack.core.live_report.is_locked", lambda folder: True)
    live.step("PPO", 1, 9)
    text = (folder / "report.html").read_text()
    assert "PPO, step 1 of 9" in text
    assert 'data-control="reload"' in text
    assert not (tmp_path / "index.html").exists()
    text = live.end("failed", "ValueError: <no>").read_text()
    assert "ValueError: &lt;no&gt;" in text
    assert 'data-control="reload"' not in text
    assert "failed" in (tmp_path / "index.html").read_text()


def test_stages_come_in_training_order_and_add_up(tmp_path):
    folder, _ = run_folder(tmp_path, "q")
    found = history.read(folder)
    assert [stage.name for stage in found.stages] == ["SFT", "PPO"]
    assert (found.tokens, found.cpu_seconds, found.seconds) == (1000.0, 7.0, 2.0)
    (folder / "status.json").unlink()  # a run of before it was written
    assert [stage.name for stage in history.read(folder).stages] == ["base", "training"]


def test_the_index_compares_runs_and_names_what_it_cannot_read(tmp_path, capsys):
    for name in ("one", "two"):
        run_folder(tmp_path, name)[1].end("finished")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    broken = run_folder(tmp_path, "torn")[0] / "evals" / "after" / "first" / "result.json"
    broken.write_text("{")
    assert cli.main(["report", "--runs", str(tmp_path)]) == 0
    page = tmp_path / "index.html"
    assert capsys.readouterr().out.strip() == str(page)
    data = tools.page_data(page)
    assert sorted(data["runs"]) == ["one", "two"]
    assert data["chosen"] == [0, 1]
    assert sorted(line["label"] for line in data["charts"]["Reward"]["lines"]) == ["one", "two"]
    text = page.read_text()
    assert text.count("<td>unreadable</td>") == 2
    assert "broken/config.json is not JSON" in text
    assert json.dumps(data["runs"], separators=(",", ":")) in text


def test_a_folder_without_runs_has_no_index(tmp_path, capsys):
    assert cli.main(["report", "--runs", str(tmp_path)]) != 0
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "index.html").exists()
