"""Provenance of a number: commit, machine, versions, time. No torch; callers with a GPU add it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from stepstack.config import ROOT

LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "math-verify",
    "numpy",
    "trl",
    "vllm",
    "diffusers",
)


def provenance(root: Path = ROOT, libraries: Sequence[str] = LIBRARIES) -> dict[str, Any]:
    """Provenance in plain JSON values: time (UTC, ISO 8601), commit, dirty, host, python, versions (of installed
    libraries)."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **commit(root),
        "host": host(),
        "python": platform.python_version(),
        "versions": versions(libraries),
    }


def commit(root: Path = ROOT) -> dict[str, Any]:
    """Hash of the commit, and dirty, whether tracked files differ from it; both None where git knows no commit."""
    head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if head is None:
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}


def host() -> dict[str, Any]:
    """Facts of the machine that do not name it: cpu (model name), cores (that this process may use), memory_gib,
    system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Installed versions by name, without importing anything. A library that is not installed has no entry."""
    installed = {}
    for name in libraries:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def describe(record: Mapping[str, Any]) -> str:
    """Provenance in one line, for the footer of a table."""
    mark = "+changes" if record["dirty"] else ""
    where = record["host"]
    return (
        f"{(record['commit'] or 'no commit')[:12]}{mark}, {record['time']}, {where['cores']} x {where['cpu']}, "
        f"{where['memory_gib']} GiB, torch {record['versions'].get('torch', 'none')}"
    )


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, or None where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
