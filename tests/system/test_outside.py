"""stepstack from a folder of the user's own, which has packages of the same names as the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepstack.config import ROOT

WAYS = {"stepstack": [str(Path(sys.executable).with_name("stepstack"))], "module": [sys.executable, "-m", "stepstack"]}
NAMES = ("data", "evals", "recipes", "tests", "configs", "docs", "scripts", "stepstack_kernels")
MINE = """
steps: 1
save: {every: 0}
eval_every: 0
trackers: []
evals: [test, mine.py]
reward: {type: file, path: reward.py, function: score}
data: {terms: [2, 3], largest_term: 4, largest_sum: 4, train: 40, select: 6, test: 8}
model: {hidden: 48, layers: 2, intermediate: 96, steps: 2, batch: 32}
rollout: {prompts: 4, sampling: {n: 2, max_tokens: 8}}
"""

TASK = """
from tests.sums import ROWS  # the project's own package

from stepstack.generation.types import Sampling
from stepstack.harness.task import Task
from stepstack.records import Problem, Score

TASK = Task(
    name="mine",
    version=1,
    about="sums",
    rows=lambda data: [Problem(i, text, gold) for i, (text, gold) in enumerate(ROWS)],
    request=lambda problem: f"User: {problem.text}=?\\nAssistant: <think>",
    score=lambda answers: [Score(float(answer.text.endswith(answer.problem.gold))) for answer in answers],
    budget=Sampling(n=1, max_tokens=4),
)
"""

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("src", ".", "kernels"))}


@pytest.fixture
def project(tmp_path) -> Path:
    """A project whose packages stop whoever imports them, but for ``tests``."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("" if name == "tests" else f"raise RuntimeError('{name} of mine')")
    (tmp_path / "tests" / "sums.py").write_text("ROWS = [(f'{a}+1+1', str(a + 2)) for a in range(3)]\n")
    (tmp_path / "mine.py").write_text(TASK)
    (tmp_path / "reward.py").write_text("def score(answers):\n    return [float(len(a.text) % 2) for a in answers]\n")
    (tmp_path / "mine.yaml").write_text("base: orz-tiny\n" + MINE)
    return tmp_path


def run(way: str, project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as a shell in the project starts it; PYTHONPATH holds this checkout behind the project."""
    env = ENV | {"PYTHONPATH": os.pathsep.join([str(project), ENV["PYTHONPATH"]])}
    done = subprocess.run(
        [*WAYS[way], *words], cwd=project, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("way", WAYS)
def test_every_package_is_the_repositorys(project, way):
    assert run(way, project, "config", "orz-tiny").stdout.startswith("recipe = orz")
    assert "aime24" in run(way, project, "tasks").stdout
    assert "parameters" in run(way, project, "train", "stepvideo-tiny", "--dry-run").stdout
    assert "accuracy before" in run(way, project, "table", "orz-tiny").stdout


def test_a_config_a_task_and_a_reward_of_ones_own_train_into_ones_own_folder(project):
    """By launch, whose training process is `python -m stepstack`."""
    way = "stepstack"
    values = run(way, project, "config", "mine.yaml", "--explain").stdout
    assert f"{project}/runs" in values
    run(way, project, "launch", "./mine.yaml", "peak_tflops=1.0")
    folder = project / "runs" / "mine"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert (folder / "model" / "config.json").is_file()
    assert {path.name.split("-")[0] for path in (folder / "evals" / "after").iterdir()} >= {"test", "mine"}
    said = run(way, project, "eval", "mine.yaml", "peak_tflops=1.0", "--tasks", "mine.py").stdout
    assert "mine" in said


def test_another_package_of_the_name_that_is_loaded_already_is_named(project):
    (project / "data" / "__init__.py").write_text("")
    words = [sys.executable, "-c", "import data; import stepstack"]
    done = subprocess.run(words, cwd=project, env=ENV, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {project}/data is loaded as the package data, which stepstack has one of too: import stepstack "
        "before it, or rename it"
    )


def test_a_script_of_the_project_imports_a_recipe(project):
    (project / "recipes" / "__init__.py").unlink()
    (project / "recipes").rmdir()
    words = [sys.executable, "-c", "import recipes.orz.config; print(recipes.orz.config.__file__)"]
    done = subprocess.run(words, cwd=project, env=ENV, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(ROOT / "recipes" / "orz" / "config.py"), done.stderr
