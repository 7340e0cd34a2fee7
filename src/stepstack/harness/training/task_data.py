"""Training on the rows of a task file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from data.drawn.splits import SPLITS, Split
from stepstack.config import ConfigError
from stepstack.harness.config import TaskData
from stepstack.harness.task import DATA, Task, load
from stepstack.records import Problem
from stepstack.user_code import resolve_path


def load_task(cfg: TaskData) -> Task:
    """The task of the file."""
    return load(str(resolve_path(cfg.path)))


def split_rows(cfg: TaskData, task: Task) -> dict[Split, list[Problem]]:
    """The rows of each split."""
    return hold_out(task.rows(DATA), cfg.select, cfg.test, cfg.path)


def hold_out(problems: Sequence[Problem], select: int, test: int, source: str) -> dict[Split, list[Problem]]:
    """The rows of each split, numbered from 0: equal texts are in one split, whatever the order of the rows.

    ConfigError where ``source`` has too few rows to hold any out and train on the rest.
    """
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.text, []).append(problem)
    order = sorted(groups, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    splits: dict[Split, list[Problem]] = {split: [] for split in SPLITS}
    for text in order:
        name: Split = "train"
        if len(splits["test"]) < test:
            name = "test"
        elif len(splits["select"]) < select:
            name = "select"
        splits[name] += groups[text]
    if not splits["train"]:
        count = sum(map(len, groups.values()))
        raise ConfigError(
            f"{source} has {count} rows, of which data.test={test} and data.select={select} are held out: "
            "lower these, or give it more rows"
        )
    return {name: [replace(problem, index=i) for i, problem in enumerate(rows)] for name, rows in splits.items()}


def split_tasks(cfg: TaskData, task: Task) -> list[Task]:
    """Each split as a task of the same request, score and budget."""

    def split(name: Split) -> Task:
        about = f"the {name} rows of {cfg.path}"
        return replace(task, name=name, about=about, rows=lambda data: split_rows(cfg, task)[name])

    return [split(name) for name in SPLITS]
