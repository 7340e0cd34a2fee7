"""Build hook of hatchling: only an editable install is built, since stepstack runs from its repository."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableOnly(BuildHookInterface):
    """Hook that stops the build of a wheel that would not work."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Stop with one line unless ``version``, hatchling's kind of wheel, is editable."""
        if version != "editable":
            raise SystemExit(
                "stepstack runs from its repository, whose configs, tasks and tables a wheel would not hold: clone it "
                "and install it with `make setup`, or with `pip install -e .` into an environment of your own"
            )
