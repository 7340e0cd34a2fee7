"""Places of media files: below the folder that they are named from, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def locate(name: str, roots: Sequence[Path]) -> tuple[int, Path] | None:
    """Number of the root that a file lies below, and its resolved path; None where it exists below none of them.

    The name counts from each root in turn. Links and ".." are followed first, so a name cannot lead out of the roots; a
    link from one root into another may.
    """
    resolved = [root.resolve() for root in roots]
    for root in resolved:
        path = (root / name).resolve()
        for number, home in enumerate(resolved):
            if path.is_relative_to(home) and path.is_file():
                return number, path
    return None
