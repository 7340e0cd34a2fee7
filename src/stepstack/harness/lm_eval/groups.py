"""Figures of a group of lm-eval's tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepstack.core.types import ProcessGroup
from stepstack.harness import answers as io
from stepstack.harness.store import PLAN, RESULT, RESULT_KEYS, SAMPLES, digest
from stepstack.report import jsonl
from stepstack.report.provenance import LIBRARIES, provenance

RESAMPLES = 1000  # of the bootstrap of figures without a closed form


def evaluate_group(
    group: Any,
    members: Mapping[str, tuple[Path, dict[str, Any]]],
    world: ProcessGroup,
    root: Path,
    about: Mapping[str, Any],
) -> tuple[Path, dict[str, Any]]:
    """A group's figures, which lm-eval aggregates from those of its tasks. It has no samples of its own."""
    results = {name: members[name][1] for name in (task.task_name for task in group.get_all_tasks())}
    figures: dict[str, dict[str, Any]] = {}
    better: dict[str, bool] = {}
    for name, result in results.items():
        figures[name] = {"sample_len": max(metric["n"] for metric in result["metrics"])}
        for metric in result["metrics"]:
            spread = "N/A" if metric["stderr"] is None else metric["stderr"]
            figures[name] |= {metric["name"]: metric["value"], stderr_name(metric["name"]): spread}
            better[metric["name"]] = metric["higher_is_better"]
    whole: Any = group.aggregate(figures)
    numbers = [(name, whole[stderr_name(name)]) for name in better if name in whole]
    parts = {name: digest(result["plan"]) for name, result in results.items()}
    plan = {"task": f"lm_eval:{group.name}", "version": group.version, "parts": parts}
    record = {
        "kind": "eval",
        "task": plan["task"],
        "version": group.version,
        "shots": next(iter(results.values()))["shots"],
        "metrics": [
            {
                "name": name,
                "value": float(whole[name]),
                "stderr": None if spread == "N/A" else float(spread),
                "n": whole["sample_count"][name],
                "higher_is_better": better[name],
            }
            for name, spread in numbers
        ],
        "k": max(result["k"] for result in results.values()),
        **{key: sum(result[key] for result in results.values()) for key in ("n", "samples", "truncated", "tokens")},
        "failed": {side: sum(r["failed"][side] for r in results.values()) for side in ("engine", "grader")},
        "length": None,
        "plan": plan,
        "model": next(iter(results.values()))["model"],
        **about,
    }
    timing = {key: sum(r["timing"][key] for r in results.values()) for key in ("wall_s", "generation_s")}
    folder = folder_of(root, plan)
    if world.rank == 0 and not (folder / RESULT).is_file():
        jsonl.write_json_atomic(folder / PLAN, plan)
        io.write(folder / SAMPLES, [])
        jsonl.write_json_atomic(folder / RESULT, record | {"provenance": provenance_of(), "timing": timing})
    world.gather([])
    return folder, jsonl.read_json(folder / RESULT, *RESULT_KEYS)


def stderr_name(metric: str) -> str:
    """lm-eval's key of the standard error of "metric,filter"."""
    name, _, kind = metric.rpartition(",")
    return f"{name}_stderr,{kind}"


def folder_of(root: Path, plan: Mapping[str, Any]) -> Path:
    name = re.sub(r"[^\w.-]", "_", plan["task"].removeprefix("lm_eval:"))
    return root / f"lm_eval.{name}-{digest(plan)[:8]}"


def provenance_of() -> dict[str, Any]:
    return provenance(libraries=(*LIBRARIES, "lm_eval"))
