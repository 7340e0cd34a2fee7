"""The Makefile is a menu: every target says what it does, in one line."""

from __future__ import annotations

import re
import sys

from scripts import make_help, setup_venv
from stepstack.config import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
PHONY = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()


def test_help_explains_every_target():
    assert [name for name, _ in make_help.targets(MAKEFILE)] == [name for name in PHONY if name != "help"]


def test_a_target_is_one_line():
    assert [line for line in MAKEFILE.splitlines() if line.startswith("\t") or line.endswith("\\")] == []


def test_an_old_python_is_refused_by_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    monkeypatch.setattr(sys, "argv", ["setup_venv.py"])
    assert setup_venv.main() == 1
    said = capsys.readouterr().err
    assert "needs Python 3.11 or newer" in said
    assert "is 3.10.4" in said
    assert "make setup PYTHON=" in said


def test_every_pin_is_exact_and_torch_has_no_local_version():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    assert any(pin.startswith("torch==") for pin in pins)


def test_vllm_gets_the_numpy_that_it_takes_and_else_every_version_of_the_house():
    house, other = ((ROOT / name).read_text().splitlines() for name in ("constraints.txt", "constraints-vllm.txt"))
    assert setup_venv.constraints("gpu").splitlines() == house
    chosen = setup_venv.constraints("vllm,gpu").splitlines()
    [changed] = set(chosen) - set(house)
    assert changed.startswith("numpy==")
    assert changed in other
    assert len(chosen) == len(house)
