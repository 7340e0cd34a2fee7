"""Modules below the floors of torch import nothing heavy, and commands that only read and plan start quickly."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stepstack.config import CONFIGS, ROOT
from tests.house.tree import code

HEAVY = ("torch", "transformers", "accelerate", "datasets", "trl", "vllm", "diffusers", "peft", "httpx2")
# Everything below a package or module; recipes.*.config are added by their names.
FLOORS = (
    "stepstack.config",
    "stepstack.keys",
    "stepstack.schema",
    "stepstack.records",
    "stepstack.user_code",
    "stepstack.report",
    "stepstack.scoring",
    "stepstack.planning",
    "stepstack.simulation",
    "stepstack.cli",
    "stepstack.core.config",
    "stepstack.core.launch",
    "stepstack.core.preflight",
    "stepstack.batching.config",
    "stepstack.diffusion.config",
    "stepstack.generation.config",
    "stepstack.generation.http",
    "stepstack.generation.types",
    "stepstack.generation.vllm.config",
    "stepstack.rl.config",
    "stepstack.rl.reward",
    "stepstack.models.lm.config",
    "stepstack.models.video.dsv.config",
    "stepstack.harness.config",
    "stepstack.harness.task",
    "data.drawn",
    "data.prepare.config",
    "recipes.protocol",
)
LEAST = ["-c", "import numpy, pydantic, rich.console, yaml"]  # what every command needs
TIMES = 8  # the CPU time of that, at most, which is a second where that takes 0.12 s

COMMANDS = (
    "--help",
    "config",
    *(f"config {path.stem} --explain" for path in sorted(CONFIGS.glob("*-tiny.yaml"))),
    "config orz-32b --explain actor.optim",
    "config --schema",
    "launch orz-tiny --dry-run",
    "launch orz-32b --dry-run",
    "plan steplaw --params 1e9 --tokens 100e9",
    "plan steplaw --config orz-tiny",
    "plan pods --nodes 64 --tp 32",
    "plan memory stepvideo-ti2v-30b",
    "plan contextparallel configs/plans/contextparallel-dsv.yaml",
    "plan rollout configs/plans/rollout-streamrl.yaml",
    "plan pipeline configs/plans/pipeline-37b.yaml",
)
STUDIES = ("sim pipeline memory",)  # commands that compute for seconds


def modules() -> list[str]:
    names = [".".join(p.with_suffix("").parts).removeprefix("src.").removesuffix(".__init__") for p in code()]
    floors = [*FLOORS, *(name for name in names if name.startswith("recipes.") and name.endswith(".config"))]
    return sorted({name for name in names for floor in floors if f"{name}.".startswith(f"{floor}.")})


def test_floors_are_there():
    """A module that was moved is no longer looked at under its old name."""
    for floor in FLOORS:
        assert any(f"{name}.".startswith(f"{floor}.") for name in modules()), floor
    assert {"recipes.orz.config", "stepstack.cli.plan.pods", "stepstack.cli.config"} <= set(modules())


def heavy_after(script: str) -> str:
    """Names of the heavy libraries that a script has loaded at its end."""
    script = f"import sys\n{script}\nprint(*sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stderr.strip()


@pytest.mark.parametrize("module", modules())
def test_imports_nothing_heavy(module):
    assert heavy_after(f"import {module}") == ""


@pytest.mark.parametrize("command", [*COMMANDS, *STUDIES])
def test_a_command_imports_nothing_heavy(command):
    script = f"from stepstack.cli.main import main\ntry:\n    code = main({command.split()!r})\n"
    script += "except SystemExit as end:\n    code = end.code\nassert code == 0, code"
    assert heavy_after(script) == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_little_more_cpu_than_its_libraries(command):
    """In one of five tries, since other processes slow either down."""
    assert any(cpu_seconds(["-m", "stepstack", *command.split()]) < TIMES * cpu_seconds(LEAST) for _ in range(5))


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of Python with arguments, from the resource usage of the child."""
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, errors.decode()
    return usage.ru_utime + usage.ru_stime
