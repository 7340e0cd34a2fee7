"""How the repository is installed: editable, or not at all."""

from __future__ import annotations

import subprocess
import sys

from stepstack.config import ROOT

BUILD = "import sys; from hatchling import build; print(build.build_editable(sys.argv[1]))"


def test_a_wheel_is_not_built_and_the_error_says_what_to_do(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "-w", tmp_path, ROOT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "stepstack runs from its repository" in done.stdout + done.stderr
    assert "`pip install -e .`" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_editable_install_is_built(tmp_path):
    done = subprocess.run([sys.executable, "-c", BUILD, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (tmp_path / done.stdout.strip()).is_file()
