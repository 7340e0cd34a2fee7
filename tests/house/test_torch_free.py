"""The ground floor, the planners and the launcher start without torch: `stepstack --help` is quick."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.house.tree import code

HEAVY = ("torch", "transformers", "accelerate", "datasets", "trl", "vllm", "httpx2")
FLOORS = (
    "config",
    "records",
    "report",
    "scoring",
    "planning",
    "simulation",
    "cli",
    "core.launch",
    "rl.types",
    "generation.http",
)


def modules() -> list[str]:
    names = [".".join(p.with_suffix("").parts[1:]) for p in code() if p.parts[:2] == ("src", "stepstack")]
    names = [name.removesuffix(".__init__") for name in names]
    below = [n for n in names for floor in FLOORS if f"{n}.".startswith(f"stepstack.{floor}.")]
    return sorted(below)


@pytest.mark.parametrize("module", modules())
def test_imports_nothing_heavy(module):
    script = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
