"""A task is data: rows, a request, a score, metrics. One short file each under evals/tasks; its stem is its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepstack.config import ROOT, ConfigError
from stepstack.generation.prompts import Request
from stepstack.generation.types import Budget
from stepstack.harness import metrics
from stepstack.harness.metrics import Metric
from stepstack.records import Problem
from stepstack.rl.reward import Reward
from stepstack.user_code import load_module

TASKS = ROOT / "evals" / "tasks"
LM_EVAL = "lm_eval:"  # begins the name of a task of lm-evaluation-harness
DATA = ROOT / "evals" / "data"  # where tasks look for their rows; not in git


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """``version`` goes up by one whenever rows, request, score or metrics change: results of two versions are never
    compared in silence.

    ``rows`` reads the problems, given the folder of benchmark data; ``score`` is a reward; ``metrics`` makes the
    figures from the budget that was spent, the first being the one that tables show unless told; ``about`` is a line
    for the menu, with the source. ``judge`` returns what tells the model that scores from another one, where a model
    does: it is part of an evaluation's plan, so that verdicts of two judges are two results.
    """

    name: str
    version: int
    about: str
    rows: Callable[[Path], Sequence[Problem]]
    request: Callable[[Problem], Request]
    score: Reward
    budget: Budget
    metrics: Callable[[Budget], Sequence[Metric]] = field(default=metrics.of_samples)
    judge: Callable[[], Mapping[str, Any]] | None = None


def load(name: str, recipe_tasks: Sequence[Task] = (), folder: Path = TASKS) -> Task:
    """The task of a name (one of ``recipe_tasks``, the recipe's, or a file in evals/tasks) or of a path to a .py file.

    ConfigError for an unknown name, listing the menu, and for a file without ``TASK`` or whose task has another name.
    """
    for task in recipe_tasks:
        if task.name == name:
            return task
    path = Path(name) if name.endswith(".py") else folder / f"{name}.py"
    if not path.is_file():
        menu = ", ".join([*(task.name for task in recipe_tasks), *menu_of(folder)])
        raise ConfigError(f"no task {name!r}: {path} does not exist. There are: {menu}, lm_eval:<task>, or a path")
    defined = vars(load_module(path)).get("TASK")
    if not isinstance(defined, Task):
        raise ConfigError(f"{path} defines no TASK = Task(...): add it")
    if defined.name != path.stem or not re.fullmatch(r"[\w.-]+", defined.name):
        raise ConfigError(f"{path}: its task is named {defined.name!r}; the file's stem must be the name")
    return defined


def menu_of(folder: Path = TASKS) -> list[str]:
    """Names of the tasks in a folder."""
    return sorted(path.stem for path in folder.glob("*.py"))
