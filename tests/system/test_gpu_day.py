"""`make gpu` on a CPU: each step runs, or is left out with its reason, and what was measured outlives any end."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from evals.gpu import day, watch
from evals.gpu.day import Day
from evals.gpu.packages import Package
from evals.gpu.steps import STEPS, Step, dsv_line, read_json, read_tests, read_training, suite_line, training_line
from stepstack.config import ROOT

WRITE = "import json, sys; json.dump({'n': 1}, open(sys.argv[1], 'w'))"
SLEEP = "import subprocess, time; subprocess.Popen(['sleep', '97531'], start_new_session=True); time.sleep(600)"


def fake(name: str, script: str, **kwargs) -> Step:
    """A step that runs a script with the path of its figures."""
    return Step(
        name=name,
        about="a test",
        command=lambda place: [sys.executable, "-c", script, str(place / "figures.json")],
        read=read_json,
        line=lambda figures: f"n is {figures['n']}",
        **{"seconds": 540.0, "needs": (), "cuda": False, "least": 0.0, **kwargs},
    )


@pytest.fixture
def no_look(monkeypatch):
    """A machine without a GPU, found so at once."""
    monkeypatch.setattr(Day, "_look", lambda self, scratch: self.device.update(torch="2.11", cuda=None, gpu=None))


def outcomes(out: Path) -> dict[str, str]:
    return {record["step"]: record["outcome"] for record in json.loads((out / "day.json").read_text())["steps"]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_the_whole_day_on_a_cpu(tmp_path):
    """In 24 seconds in place of 540: what needs CUDA is left out and says so, the rest runs as long as it may."""
    line = [sys.executable, "-m", "evals.gpu", "--minutes", "0.4", "--out", str(tmp_path)]
    began = time.monotonic()
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert time.monotonic() - began < 60, ended.stderr
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(outcomes(tmp_path)) == [step.name for step in STEPS]
    for step in STEPS:
        record = json.loads((tmp_path / f"{step.name}.json").read_text())
        assert record["reason"] in ended.stdout
        if step.cuda:
            assert record["outcome"] == "left out"
            assert "needs a CUDA device" in record["reason"]
        else:
            assert record["outcome"] in ("stopped", "left out"), record
    assert ended.stdout.startswith(f"torch {torch.__version__}, CUDA None, no GPU")


def test_a_step_that_fails_or_hangs_is_a_row(tmp_path, capsys, no_look):
    steps = [
        fake("works", WRITE),
        fake("breaks", "raise SystemExit('out of luck')"),
        fake("hangs", f"{WRITE}; {SLEEP}".replace("\n", ";"), seconds=540.0 * 3 / 60),
        fake("lacks", WRITE, needs=("no-such-package",)),
        fake("instead", WRITE, instead_of="lacks"),
        fake("other", WRITE, instead_of="works"),
        fake("later", WRITE, least=541.0),
    ]
    assert Day(steps, 60.0, tmp_path).run() == 1
    records = {r["step"]: r for r in json.loads((tmp_path / "day.json").read_text())["steps"]}
    assert records["works"]["figures"] == {"n": 1}
    assert (records["breaks"]["outcome"], records["breaks"]["reason"]) == ("failed", "exit status 1: out of luck")
    assert records["breaks"]["output"] == ["out of luck"]
    assert (records["hangs"]["outcome"], records["hangs"]["line"]) == ("stopped", "n is 1")
    assert records["lacks"]["reason"] == "lacks no-such-package"
    assert records["instead"]["outcome"] == "done"
    assert records["other"]["reason"] == "works stands for it"
    assert records["later"]["reason"].startswith("no time: ")
    assert nobody_sleeps()
    printed = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in printed[2:]] == [step.name for step in steps]
    assert any("hangs" in row and "n is 1; its 3 s were over" in row for row in printed)


def test_a_stop_in_the_middle_keeps_what_is_there(tmp_path):
    script = (
        "import sys; from pathlib import Path; from evals.gpu import day; from tests.system import test_gpu_day as t\n"
        "day.REFRESH = 0.2\n"
        "day.Day._look = lambda self, scratch: self.device.update(torch='2.11', cuda=None, gpu=None)\n"
        "steps = [t.fake('first', t.WRITE), t.fake('second', t.WRITE + '; ' + t.SLEEP), t.fake('third', t.WRITE)]\n"
        "sys.exit(day.Day(steps, 600.0, Path(sys.argv[1])).run())"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=paths()
    )
    file = tmp_path / "second.json"
    until(lambda: file.is_file() and "figures" in json.loads(file.read_text()), child)
    assert json.loads(file.read_text())["outcome"] == "running"  # there already, if all were killed now
    child.send_signal(signal.SIGTERM)
    printed, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert outcomes(tmp_path) == {"first": "done", "second": "stopped", "third": "left out"}
    assert json.loads(file.read_text())["figures"] == {"n": 1}
    assert "n is 1; stopped by SIGTERM" in printed
    assert "the day was stopped by SIGTERM" in printed
    assert nobody_sleeps()


def test_the_reason_of_a_failure_is_the_first_process_to_fail(tmp_path):
    child = day.Child(["true"], tmp_path)
    child.process.wait()
    child.output.write_text(
        "Traceback\n  File 'x'\nModuleNotFoundError: No module named 'diffusers'\nTraceback (most recent call last):\n"
        "subprocess.CalledProcessError: Command '[...]' returned non-zero exit status 1.\n"
    )
    assert child.last_words() == "ModuleNotFoundError: No module named 'diffusers'"
    child.output.write_text("stepstack launch: this machine cannot run it:\n  launch.port=1 is taken\n")
    assert child.last_words().startswith("stepstack launch: ")
    child.output.write_text("")
    assert child.last_words() == "it printed nothing"


def test_tests_are_ordered_and_recorded_one_by_one(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_a_run_trains_and_resumes(): pass\n"
        "@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])\n"
        "def test_output_and_every_gradient(dtype): assert dtype == 'bfloat16', 'too coarse'\n"
        "@pytest.mark.skip(reason='no')\n"
        "def test_sampler_and_trainer_agree(): pass\n"
    )
    line = [sys.executable, "-m", "pytest", "-q", "-p", "evals.gpu.watch", "--record", str(tmp_path / "tests.jsonl")]
    subprocess.run([*line, str(tmp_path)], cwd=tmp_path, capture_output=True, check=False, env=paths())
    figures = read_tests(tmp_path)
    assert [(row["test"].rpartition("::")[2], row["outcome"]) for row in figures["tests"]] == [
        ("test_sampler_and_trainer_agree", "skipped"),
        ("test_output_and_every_gradient[bfloat16]", "passed"),
        ("test_output_and_every_gradient[float32]", "failed"),
        ("test_a_run_trains_and_resumes", "passed"),
    ]
    assert suite_line(figures) == (
        "2 passed, 1 failed, 1 skipped of 4; first to fail: test_output_and_every_gradient[float32]"
    )


def test_the_plugin_knows_every_gpu_test():
    trees = [ast.parse(file.read_text()) for file in (ROOT / "tests" / "gpu").glob("test_*.py")]
    names = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {name for name in names if name.startswith("test_")} == watch.SECONDS.keys()


def test_figures_of_a_training_that_was_killed(tmp_path):
    assert read_training(tmp_path) == {}
    rows = [{"step": n, "time/step": 9.0 if n < 3 else 0.5, "memory_gib": 1.0, "tokens_per_s": 10.0} for n in range(6)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "ti')
    figures = read_training(tmp_path)
    assert (figures["steps"], figures["counted"], figures["time/step"]) == (5, 3, 0.5)
    assert training_line(figures) == "0.500 s a step, median of 3, 10 tokens/s, 1.0 GiB"


def test_a_contestant_that_fails_is_told_apart():
    row = {"sparsity": 0.9, "k": "uniform", "who": "stepstack", "times_limit": 1.5}
    failed = {**row, "who": "FlexAttention", "pass": "forward", "failed": "out of memory"}
    del failed["times_limit"]
    rows = [{**row, "pass": "forward"}, {**row, "pass": "backward", "times_limit": 2.0}, failed]
    assert dsv_line({"rows": rows}) == "x limit, fw / bw: stepstack 1.50 / 2.00, FlexAttention failed / ?"


def test_packages_that_lack_are_listed_with_the_version_wanted():
    known = {p.name: p for p in (Package("a", "1.2", None), Package("b", "2.0", "1.0"), Package("c", "3.0", "3.0"))}
    head = day.table([], {"torch": "2.11", "cuda": "13.0", "gpu": {"name": "H100"}}, known).splitlines()[:3]
    assert head == [
        "torch 2.11, CUDA 13.0, H100",
        "lacking, with the versions wanted: a 1.2",
        "other versions: b 1.0 for 2.0",
    ]


def paths() -> dict[str, str]:
    folders = [str(ROOT / "src"), str(ROOT), str(ROOT / "kernels")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def until(true, child: subprocess.Popen) -> None:
    ends = time.monotonic() + 60
    while not true():
        assert child.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.1)


def nobody_sleeps() -> bool:
    """Not even the process that a step had started in a session of its own."""
    return not any(p.info["cmdline"] == ["sleep", "97531"] for p in psutil.process_iter(["cmdline"]))
