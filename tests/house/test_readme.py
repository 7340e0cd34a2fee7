"""Pages are true: links lead somewhere and commands exist. Commands that have a dry run are run dry; those of tutorials
are run for real (tests/recipes/test_tutorials.py), but for what is marked ``sh cluster``."""

from __future__ import annotations

import os
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
from stepstack.config import CONFIGS, ROOT, flatten, to_dict
from tests.house.tree import files, text

FOLDERS = ("recipes", "docs")
READMES = [p for p in files(".md") if p.name == "README.md" or p.parts[0] in FOLDERS]
FENCE = re.compile(r"^```(?:bash|sh|shell|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
CLUSTER = re.compile(r"^```sh cluster\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
KEY = re.compile(r"^[a-z_]+(?:\.[a-z_]+)+(?=$|[:=])(?<!\.py)")
NAMED = ("launch", "train", "config", "eval", "push")  # subcommands whose first word is a config


def commands(path) -> list[str]:
    """Lines of the fenced blocks, continued lines joined, prompts and comments cut off."""
    found = []
    for block in (CLUSTER if path.parent == Path("docs/tutorials") else FENCE).findall(text(path)):
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


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text(path), flags=re.MULTILINE | re.DOTALL)


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", files(".md"), ids=str)
def test_links_lead_somewhere(page):
    """Relative links and pictures: the file exists, and has the heading that the link names."""
    broken = []
    for target in (a or b for a, b in LINK.findall(prose(page))):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = os.path.normpath(page.parent / name) if name else str(page)
        if not (ROOT / file).exists() or (anchor and file.endswith(".md") and anchor not in headings(Path(file))):
            broken.append(target)
    assert broken == []


def test_the_tests_that_answer_the_first_day_exist():
    named = re.findall(r"`(?:(\w+/[\w/]+\.py))?(?:::(test_\w+))?`", text(Path("docs/first-day.md")))
    file = ""
    missing = []
    for path, name in named:
        file = path or file  # `::test_x` belongs to the file before it
        where = ROOT / "tests" / file
        if (path or name) and not (where.is_file() and (not name or f"def {name}(" in where.read_text())):
            missing.append(f"{file}::{name}")
    assert len(named) > 30
    assert missing == []


def test_the_keys_that_newcomers_are_told_exist():
    """Dotted keys in our column of the tables of docs/coming-from.md are keys of some config."""
    rows = re.findall(r"^\| .* \| (.*) \|$", text(Path("docs/coming-from.md")), re.MULTILINE)
    told = {word for cell in rows for code in re.findall(r"`([^`]+)`", cell) for word in KEY.findall(code)}
    known = {key for path in CONFIGS.glob("*.yaml") for key, _ in flatten(to_dict(load_config(path.stem)))}
    known |= {key.rpartition(".")[0] for key in known}
    assert len(told) > 20
    assert told - known == set()


def test_the_loop_has_the_lines_that_pages_claim():
    pages = text(Path("README.md")) + text(Path("docs/coming-from.md"))
    claims = re.findall(r"one loop of (\d+) lines|ppo\.py\), (\d+) lines", pages)
    length = len(text(Path("src/stepstack/loops/ppo.py")).splitlines())
    assert [int(a or b) for a, b in claims] == [length, length]


ELSEWHERE = {"is_equal", "HuggingFaceTB"}  # ORZ's grader, an account of a hub
ABOUT_OTHERS = (
    "docs/coming-from.md",
    "docs/decisions.md",
    "docs/decisions-second-week.md",
    "docs/decisions-first-week.md",
)


def test_names_in_pages_exist():
    """Names in code spans, and what python blocks import, are words of the code: a name that changed is found here."""
    code = {word for path in files(".py", ".yaml", ".sh", ".toml", "") for word in re.findall(r"\w+", text(path))}
    code |= {path.stem for path in files()} | ELSEWHERE
    unknown = []
    for page in (path for path in READMES if str(path) not in ABOUT_OTHERS):
        spans = " ".join(
            re.findall(r"`([^`\n]+)`", re.sub(r"<!-- table.*?<!-- end -->", "", prose(page), flags=re.DOTALL))
        )
        imports = " ".join(re.findall(r"^(?:from|import) .*$", text(page), re.MULTILINE))
        names = re.findall(r"\b[A-Za-z]\w*_\w+|\b[A-Z][a-z]+[A-Z]\w*", spans) + re.findall(r"\w{2,}", imports)
        unknown += [f"{page}: {name}" for name in dict.fromkeys(names) if name not in code]
    assert unknown == []
