"""One uninterrupted run a session: the reference of the resume tests, and the source of everybody's base model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system import hooks
from tests.system.processes import ok, train


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A run of 4 steps from scratch, base model included, that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "q"
    ok(train(run, hooks=[(hooks.record, run.parent / "q-rollouts.jsonl")]))
    return run


@pytest.fixture
def new_run(whole, tmp_path) -> Callable[[str], Path]:
    """A run folder by name that holds nothing but the base model."""

    def make(name: str = "q") -> Path:
        shutil.copytree(whole / "base" / "model", tmp_path / name / "base" / "model")
        return tmp_path / name

    return make
