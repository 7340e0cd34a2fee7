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
