"""What a run prints of its evaluations is what the files say, whatever brackets they hold."""

from types import SimpleNamespace

import pytest

from stepstack.harness.answers import Sample, write
from stepstack.harness.training import outcome
from stepstack.harness.training.evaluated import WHEN
from stepstack.harness.training.outcome import report_outcome
from stepstack.report import jsonl

PROBLEMS = ["[INST] 2 + 2? [/INST]", "the interval [a,b]", "[bold]red[/bold] :smile:", r"\left[0, 1\right]", "[/tex]"]


def evaluation(place, when):
    folder = place / "evals" / when / "test"
    samples = [
        Sample(
            index=i,
            sample=0,
            problem=text,
            gold=text,
            prompt=text,
            text=f"it is {text}",
            ids=None,
            tokens=4,
            finish="stop",
            answer=text,
            score=1.0,
        )
        for i, text in enumerate(PROBLEMS)
    ]
    write(folder / "samples.jsonl", samples)
    metric = {"name": "accuracy", "value": 1.0, "stderr": None, "n": 5, "higher_is_better": True}
    result = {"task": "test", "metrics": [metric], "length": 4.0, "truncated": 0, "samples": 5, "step": 0}
    result |= {"version": 1, "failed": {}, "timing": {}, "plan": {}, "model": {}}
    jsonl.write_json_atomic(folder / "result.json", result)


@pytest.fixture
def run(tmp_path):
    config = SimpleNamespace(name="a [/b] run")
    return SimpleNamespace(is_main=True, dir=tmp_path, config=config, end_report=lambda: tmp_path / "report.html")


def test_brackets_and_colons_are_printed_as_they_are(run, capsys, monkeypatch):
    monkeypatch.setattr(outcome, "SAMPLES_IN_TERMINAL", len(PROBLEMS))
    for when in WHEN:
        evaluation(run.dir, when)
    report_outcome(run)
    said = capsys.readouterr().out
    for text in PROBLEMS:
        assert said.count(text) >= 4  # problem, gold, two answers
    assert "a [/b] run" in said


def test_a_run_without_evaluations_has_its_report(run, capsys):
    report_outcome(run)
    said = capsys.readouterr().out
    assert f"report: {run.dir / 'report.html'}" in said
    assert "held-out" not in said
