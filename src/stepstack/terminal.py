"""The terminal: what is printed there is text, whatever brackets and colons it holds. No torch."""

from __future__ import annotations

from rich.console import Console


def console(stderr: bool = False, width: int | None = None) -> Console:
    """Console that takes no string for markup or an emoji: problems, answers and names come from files, and `[a, b]` or
    `[/INST]` in them are what they say. A style is given as ``rich.text.Text``."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
