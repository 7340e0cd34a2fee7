"""Print the Makefile's targets with the comment above each."""

from __future__ import annotations

import re
from pathlib import Path

TARGET = re.compile(r"^# (?P<says>.+)\n(?P<name>[a-z-]+):", re.MULTILINE)


def targets(makefile: str) -> list[tuple[str, str]]:
    """Pairs (target, its comment) in the order of the file."""
    return [(match["name"], match["says"]) for match in TARGET.finditer(makefile)]


if __name__ == "__main__":
    text = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    for name, says in targets(text):
        print(f"make {name:<11} {says}")
