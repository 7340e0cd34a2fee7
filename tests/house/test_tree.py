"""Everything is where its name says: recipes have the same files, tests lie where the code lies, menus are folders."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from recipes import protocol
from stepstack.config import ROOT
from tests.house.tree import files, nodes

RECIPES = sorted(path.parent.name for path in (ROOT / "recipes").glob("*/recipe.py"))
EIGHT = {"config.py", "recipe.py", "model.py", "data.py", "reward.py", "tasks.py", "report.py", "README.md"}
MORE = {"__init__.py", "prompt.py"}
OWN = {  # stages of these recipes that no folder would make clearer
    "chat": {"stages.py"},
    "mdocsum": {"pairs.py", "stages.py"},
    "stepaudio": {"stages.py"},
    "stepvideo": {"dsv.py", "preference.py"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_files_that_all_have(name):
    have = {path.name for path in files(".py", ".md") if path.parent == Path("recipes") / name}
    assert have - EIGHT - MORE - OWN.get(name, set()) == set()
    assert {"config.py", "recipe.py", "report.py", "README.md"} <= have
    recipe = protocol.load(name)
    for function in ("train", "describe", "prepare", "tasks", "open_engine", "write_report"):
        assert callable(vars(recipe)[function])


def test_unit_tests_lie_where_the_code_lies():
    homes = {path.parent.relative_to("src/stepstack") for path in files(".py") if path.parts[0] == "src"}
    homes |= {path.parent for path in files(".py") if path.parts[0] in ("data", "recipes")}
    homes |= {Path("bench")}  # evals/bench
    folders = {path.parent.relative_to("tests/unit") for path in files(".py") if path.parts[:2] == ("tests", "unit")}
    assert sorted(map(str, folders - homes)) == []


def test_no_two_files_of_tests_have_one_name():
    """pytest imports them by their stems, since the folders of tests are no packages."""
    stems = Counter(path.stem for path in files(".py") if path.parts[0] == "tests" and path.stem.startswith("test_"))
    assert [stem for stem, count in stems.items() if count > 1] == []


def test_a_command_is_a_file_with_help_options_and_run():
    for path in files(".py"):
        if path.parts[:3] != ("src", "stepstack", "cli") or path.name in ("__init__.py", "main.py", "common.py"):
            continue
        names = {node.name for node in nodes(path, ast.FunctionDef)}
        assert {"options", "run"} <= names, path


def test_a_bench_measures_and_shows():
    for path in sorted((ROOT / "evals" / "bench").glob("[a-z]*.py")):
        text = path.read_text()
        assert "measure" in text, path
        assert "show" in text, path
