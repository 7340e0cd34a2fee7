"""The files of the repository, as git would commit them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from stepstack.config import ROOT

CODE = ("src", "recipes", "data", "scripts", "kernels", "evals", "examples")  # without tests


@cache
def files(*suffixes: str) -> tuple[Path, ...]:
    """Tracked and not ignored files with one of the suffixes, relative to the root."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [Path(name) for name in sorted(set(names)) if (ROOT / name).is_file()]
    return tuple(path for path in paths if not suffixes or path.suffix in suffixes)


def code() -> tuple[Path, ...]:
    """Python files outside the tests."""
    return tuple(path for path in files(".py") if path.parts[0] in CODE)


@cache
def text(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(text(path), str(path))


def nodes(path: Path, *kinds: type) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, kinds))
