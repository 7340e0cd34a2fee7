"""The interpreted tests, in a process of their own (see conftest.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "interpreted"


def test_the_kernels_compute_what_they_should_in_the_interpreter():
    environ = os.environ | {"TRITON_INTERPRET": "1"}
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(FOLDER)]
    done = subprocess.run(line, cwd=FOLDER.parents[2], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
