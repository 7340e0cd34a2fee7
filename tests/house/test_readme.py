"""The commands in the READMEs and in docs exist. Those that have a dry run are run dry."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from recipes.protocol import load_config
from stepstack.cli.main import parser
from stepstack.config import CONFIGS, ROOT
from tests.house.tree import files, text

FOLDERS = ("recipes", "docs")
READMES = [p for p in files(".md") if p.name == "README.md" or p.parts[0] in FOLDERS]
FENCE = re.compile(r"^```(?:bash|sh|shell|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = ("launch", "train", "config", "eval")  # subcommands whose first word is a config


def commands(path) -> list[str]:
    """Lines of the fenced blocks, continued lines joined, prompts and comments cut off."""
    found = []
    for block in FENCE.findall(text(path)):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#.*$", "", line.removeprefix("$ ").strip())
            line = re.sub(r"^(?:env )?(?:\w+=\S* )*", "", line) if not line.startswith("make") else line
            if re.match(r"(make|stepstack|python -m stepstack|accelerate launch)\b", line):
                found.append(line)
    return found


CASES = [pytest.param(line, id=f"{path}: {line}") for path in READMES for line in commands(path)]


@cache
def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def is_config(name: str) -> bool:
    """A word in angle brackets stands for any."""
    return "<" in name or (CONFIGS / f"{name}.yaml").is_file()


def stepstack(*words: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "stepstack", *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@cache
def subcommand_exists(name: str) -> bool:
    return stepstack(name, "--help").returncode == 0


def test_the_root_readme_shows_the_two_commands():
    shown = commands(Path("README.md"))
    assert "make train" in shown
    assert "make test" in shown


def test_every_config_is_on_a_menu():
    shown = " ".join(text(path) for path in READMES)
    assert [p.stem for p in CONFIGS.glob("*.yaml") if p.stem not in shown] == []


@pytest.mark.parametrize("line", CASES)
def test_command_exists(line):
    words = shlex.split(line)
    match words:
        case ["make", *rest]:
            settings = dict(w.split("=", 1) for w in rest if "=" in w)
            assert {w for w in rest if "=" not in w} <= targets()
            assert is_config(settings.get("RECIPE", "<any>"))
        case ["accelerate", "launch", *rest]:
            args = launch_command_parser().parse_args(rest)
            assert (ROOT / args.config_file).is_file()
            assert args.training_script == "stepstack"
            assert is_config(args.training_script_args[1])
        case ["python", "-m", "stepstack", *rest] | ["stepstack", *rest]:
            check_stepstack(rest)


def check_stepstack(words: list[str]) -> None:
    plain = [w for w in words if not w.startswith("-")]
    if not plain:
        assert stepstack(*words).returncode == 0
        return
    assert subcommand_exists(plain[0]), f"no subcommand {plain[0]}"
    if plain == ["config"]:  # the menu, or a schema
        parser().parse_args(words)
        return
    if plain[0] in NAMED:
        assert is_config(plain[1])
        if "<" not in plain[1]:
            load_config(plain[1], [w for w in plain[2:] if "=" in w])
    if "--dry-run" in words:
        done = stepstack(*words)
        assert done.returncode == 0, done.stderr
