"""The steps of a run: what they leave of signals, however they end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests import tools


@pytest.fixture
def before() -> Iterator[signal.Handlers]:
    """Whoever handles SIGTERM before a run."""
    original = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield signal.SIG_IGN
    signal.signal(signal.SIGTERM, original)


def test_sigterm_is_heeded_within_the_steps_and_not_after(tmp_path, before):
    run = tools.make_run(tmp_path)
    for _ in run.steps(2):
        assert signal.getsignal(signal.SIGTERM) == run._on_sigterm
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_step_that_raises_leaves_no_handler_behind(tmp_path, before):
    run = tools.make_run(tmp_path)

    def steps() -> None:
        for step in run.steps(3):
            if step == 1:
                raise ArithmeticError("in a step")

    with pytest.raises(ArithmeticError, match="in a step"):
        steps()
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_evaluation_that_raises_leaves_no_handler_behind(tmp_path, before):
    def evaluate() -> dict[str, float]:
        raise ArithmeticError("in an evaluation")

    with pytest.raises(ArithmeticError, match="in an evaluation"):
        next(tools.make_run(tmp_path).steps(3, evaluate))
    assert signal.getsignal(signal.SIGTERM) == before


def test_steps_that_are_closed_early_leave_no_handler_behind(tmp_path, before):
    run = tools.make_run(tmp_path)
    steps = run.steps(3)
    assert next(steps) == 0
    assert signal.getsignal(signal.SIGTERM) == run._on_sigterm
    steps.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_sigterm_stops_leaves_no_handler_behind(tmp_path, before):
    run = tools.make_run(tmp_path)

    def steps() -> None:
        for _ in run.steps(3):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        steps()
    assert (ended.value.code, run.step) == (0, 1)
    assert signal.getsignal(signal.SIGTERM) == before
