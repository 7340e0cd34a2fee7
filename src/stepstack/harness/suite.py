"""Several tasks on one model: what `stepstack eval` and a run before and after training do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepstack.config import ConfigError
from stepstack.core.types import ProcessGroup
from stepstack.generation.types import Budget, ClipBudget
from stepstack.harness.engine import Engine
from stepstack.harness.evaluate import Again, evaluate
from stepstack.harness.task import DATA, LM_EVAL, Task, load

Evaluated = list[tuple[Path, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteOptions:
    """Changes to every task of a suite: None keeps the task's own. ``limit``: the first so many rows.
    ``again``: which questions are asked anew."""

    samples: int | None = None
    greedy: bool = False
    max_tokens: int | None = None
    seed: int = 0
    limit: int | None = None
    again: Again | None = None
    data: Path = DATA
    include: Path | None = None  # more tasks for lm-eval

    def budget(self, task: Task) -> Budget:
        """The task's budget with these changes. ConfigError for changes that clips do not have."""
        changes: dict[str, Any] = {"seed": self.seed}
        if self.greedy:
            changes |= {"temperature": 0.0, "n": 1}
        if self.samples is not None:
            changes["n"] = self.samples
        if self.max_tokens is not None:
            changes["max_tokens"] = self.max_tokens
        if isinstance(task.budget, ClipBudget) and (foreign := changes.keys() - {"n", "seed"}):
            raise ConfigError(
                f"task {task.name} asks for clips, which have no {', '.join(sorted(foreign))}: leave it out"
            )
        return dataclasses.replace(task.budget, **changes)


def evaluate_all(
    names: Sequence[str],
    engine: Engine,
    world: ProcessGroup,
    *,
    recipe_tasks: Sequence[Task],
    root: Path,
    model: Mapping[str, Any],
    options: SuiteOptions | None = None,
    about: Mapping[str, Any] | None = None,
) -> Evaluated:
    """(folder under ``root``, result) of each task, those of lm-evaluation-harness (``lm_eval:<task>``) first.

    Every name is known before the first question is asked.
    """
    options = options or SuiteOptions()
    tasks = [load(name, recipe_tasks) for name in names if not name.startswith(LM_EVAL)]
    foreign = [name.removeprefix(LM_EVAL) for name in names if name.startswith(LM_EVAL)]
    evaluated: Evaluated = []
    if foreign and options.again == "failed":
        raise ConfigError(f"lm_eval:{foreign[0]} is asked again as a whole: leave it out, or give --again alone")
    if foreign:
        from stepstack.harness.lm_eval.tasks import (
            evaluate as evaluate_lm_eval,  # an extra: imported where it is asked for
        )

        evaluated += evaluate_lm_eval(
            foreign,
            engine,
            world,
            root=root,
            model=model,
            limit=options.limit,
            seed=options.seed,
            include=options.include,
            about=about,
            again=options.again is not None,
        )
    for task in tasks:
        outcome = evaluate(
            task,
            engine,
            world,
            root=root,
            data=options.data,
            model=model,
            budget=options.budget(task),
            limit=options.limit,
            again=options.again,
            about=about,
        )
        evaluated.append(outcome)
    return evaluated
