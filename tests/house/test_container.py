"""The Dockerfile installs what the house has pinned; what of it was built stands in docs/clusters.md."""

from __future__ import annotations

import re
import shlex
import tomllib

from stepstack.config import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
LINES = TEXT.replace("\\\n", " ").splitlines()
PINNED = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}


def runs() -> list[list[str]]:
    """Words of each command of each RUN line."""
    commands = [part for line in LINES if line.startswith("RUN ") for part in line.removeprefix("RUN ").split("&&")]
    return [shlex.split(command) for command in commands]


def test_every_package_of_pip_has_one_version():
    lines = [words for words in runs() if words[0].endswith("/pip")]
    assert len(lines) == 2
    for words in lines:
        at = words.index("install")
        assert words[words.index("-c") + 1] == "constraints.txt"
        packages = [word for word in words[at + 1 :] if not word.startswith("-") and word != "constraints.txt"]
        assert [name for name in packages if "==" not in name and name not in PINNED] == []


def test_the_environment_is_the_one_of_make_setup():
    setups = [words for words in runs() if "scripts/setup_venv.py" in words]
    assert len(setups) == 2
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [chosen] = [words[words.index("--extras") + 1].split(",") for words in setups if "--extras" in words]
    assert set(chosen) <= set(extras)
    assert "vllm" in chosen


def test_base_images_are_versions_and_both_targets_exist():
    bases = re.findall(r"^ARG \w+_BASE=(\S+)$", TEXT, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.search(r":.*\d", base) and "latest" not in base for base in bases)
    assert re.findall(r"^FROM \S+ AS (\w+)$", TEXT, re.MULTILINE) == ["cpu", "cuda"]


def test_the_build_leaves_runs_and_environments_out():
    left = (ROOT / ".dockerignore").read_text().split()
    assert {"runs", ".venv*", "prepared", "evals/data"} <= set(left)
