"""Tutorials and the front page's example run, in a copy of the repository.

A fenced block that says ``title=path`` is written to that file, an ``sh`` block is executed with the configs of TINY in
place of the page's. What is marked ``sh cluster`` is only checked (tests/house/test_readme.py).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stepstack.config import ROOT
from tests.house.tree import files, text

BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUTORIALS = [p for p in files(".md") if p.parent == Path("docs/tutorials")]
MINI = "tests/system/mini.yaml"
TINY = {"orz-tiny": [MINI, "steps=1"], "reverse-tiny": ["reverse-tiny", "steps=2"]}  # what a tutorial's config becomes


@pytest.fixture
def copy(tmp_path) -> Path:
    """The repository as it would be committed, without recorded results: a place to write and train in."""
    for path in files():
        if path.parts[:2] != ("evals", "results"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, tmp_path / path)
    return tmp_path


def execute(line: list[str], folder: Path) -> str:
    """Run a line in a copy of the repository, whose code it imports; its output."""
    paths = os.pathsep.join(str(folder / name) for name in ("src", "", "kernels"))
    done = subprocess.run(
        line, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, f"{shlex.join(line)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tiny(words: list[str]) -> list[str]:
    """A command of a tutorial, as small as it goes: overrides behind the page's own are stronger."""
    match words:
        case ["python", *rest]:
            return [sys.executable, *rest]
        case ["stepstack", command, name, *rest] if name in TINY and "--dry-run" not in rest:
            config, *changes = TINY[name]
            return [sys.executable, "-m", "stepstack", command, config, *rest, *changes]
        case ["stepstack", *rest]:
            return [sys.executable, "-m", "stepstack", *rest]
    raise AssertionError(f"a tutorial's commands are stepstack and python, not {shlex.join(words)}: mark it cluster")


def test_there_are_tutorials():
    assert [path.stem for path in TUTORIALS] == ["my-cluster", "my-data", "my-recipe", "my-reward"]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(page, copy):
    for language, info, body in BLOCK.findall(text(page)):
        if info.startswith("title="):
            file = copy / info.removeprefix("title=")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(body)
        elif language == "sh" and info != "cluster":
            for line in body.splitlines():
                execute(tiny(shlex.split(line, comments=True)), copy)


def test_the_front_page_example_runs(copy):
    [(_, _, body)] = [block for block in BLOCK.findall(text(Path("README.md"))) if block[0] == "python"]
    changed, count = re.subn(r'"orz-tiny", \[(.*?)\]', rf'"{MINI}", [\1, "steps=1"]', body)
    assert count == 1
    (copy / "example.py").write_text(changed)
    assert re.search(r"^1 0\.\d+$", execute([sys.executable, "example.py"], copy), re.MULTILINE)
