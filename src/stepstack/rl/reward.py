"""The type of a reward, and rewards of a user's own file. No torch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stepstack.config import ConfigError
from stepstack.generation.types import Answer
from stepstack.records import Score, gold_text
from stepstack.rl.config import FileReward
from stepstack.user_code import load_name

# A reward scores a batch, so that a grader may work in parallel and be killed when it hangs. Pure: no state, no log.
# The answers of training are rollouts, which hold log-probabilities beside.
Reward = Callable[[Sequence[Answer]], list[Score]]

COLUMNS = (
    "prompts",
    "completions",
    "completion_ids",
    "problem",
    "gold",
)  # beside a problem's meta, in TRL's form


def load_reward(cfg: FileReward) -> Reward:
    """The function of a file as a reward: ours, ``rollouts -> list[Score]`` (or numbers), or in TRL's form, which has a
    parameter ``completions``: ``completions, **columns -> list[float]``.

    ConfigError for a file or a function that does not exist. What it returns is checked: ValueError that names the file
    for another number of scores, and for a score that is no finite number.
    """
    function = load_name(cfg.path, cfg.function)
    if not callable(function):
        raise ConfigError(f"{cfg.path}: {cfg.function} is no function: set reward.function to one")
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    as_trl = "completions" in parameters
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [name for name, p in parameters.items() if p.default is p.empty and p.kind not in variable]
    where = f"{Path(cfg.path).name}:{cfg.function}"

    def reward(rollouts: Sequence[Answer]) -> list[Score]:
        if not rollouts:
            return []
        if as_trl:
            columns = columns_of(rollouts)
            if lacking := [name for name in needed if name not in columns]:
                raise ConfigError(f"{where} asks for {', '.join(lacking)}: there are {', '.join(columns)}")
            arguments = columns if takes_all else {name: columns[name] for name in parameters if name in columns}
            returned = function(**arguments)
        else:
            returned = function(rollouts)
        return _checked(returned, len(rollouts), where)

    return reward


def columns_of(rollouts: Sequence[Answer]) -> dict[str, list[Any]]:
    """A batch as TRL's reward functions take it: lists by column, one entry a rollout. Beside COLUMNS there is a column
    for each key of the problems' ``meta``."""
    problems = [rollout.problem for rollout in rollouts]
    golds = [gold_text(problem.gold) for problem in problems]
    columns: dict[str, list[Any]] = {
        "prompts": [problem.text for problem in problems],
        "completions": [rollout.text for rollout in rollouts],
        "completion_ids": [list(rollout.ids or ()) for rollout in rollouts],
        "problem": [problem.text for problem in problems],
        "gold": golds,
    }
    for key in dict.fromkeys(key for problem in problems for key in problem.meta):
        columns.setdefault(key, [problem.meta.get(key) for problem in problems])
    return columns


def _checked(returned: Any, count: int, where: str) -> list[Score]:
    if not isinstance(returned, Sequence) or len(returned) != count:
        size = len(returned) if isinstance(returned, Sequence) else type(returned).__name__
        raise ValueError(f"reward {where} returned {size} for {count} rollouts: return a list with one score each")
    scores = [item if isinstance(item, Score) else _score(item, where) for item in returned]
    for score in scores:
        if not math.isfinite(score.value):
            raise ValueError(f"reward {where} returned {score.value}: a score must be a finite number")
    return scores


def _score(item: Any, where: str) -> Score:
    """A number as a Score; None, by which TRL's functions say that they do not apply, is no verdict."""
    if item is None:
        return Score(0.0, failure="no score")
    try:
        return Score(float(item))
    except (TypeError, ValueError):
        raise ValueError(f"reward {where} returned {item!r}: a score must be a number or a records.Score") from None
