"""Where the packages beside ``stepstack`` are found: in its repository, whatever folder a command is given from.

Their names are plain: a user's project may well have a package ``data`` or ``recipes`` too, and Python looks into the
current folder (``python -m``) and PYTHONPATH before it looks at what is installed. Other names are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
HOMES = {"data": ROOT, "evals": ROOT, "recipes": ROOT, "stepstack_kernels": ROOT / "kernels"}


class RepositoryFinder:
    """Finder of Python's import system for the packages of ``HOMES``, and for nothing else."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package ``name`` of the repository; None for any other name."""
        return PathFinder.find_spec(name, [str(HOMES[name])]) if name in HOMES else None


def find_in_repository() -> None:
    """Have the packages of ``HOMES`` imported from the repository from here on. ImportError where another package of
    such a name is loaded already, which would take their place."""
    for name, home in HOMES.items():
        places = sys.modules[name].__path__ if name in sys.modules else []
        if any(Path(place).resolve() != home / name for place in places):
            raise ImportError(
                f"{next(iter(places))} is loaded as the package {name}, which stepstack has one of too: import "
                "stepstack before it, or rename it"
            )
    if RepositoryFinder not in sys.meta_path:
        sys.meta_path.insert(0, RepositoryFinder)
