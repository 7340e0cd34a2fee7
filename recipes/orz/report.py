"""The report of an ORZ run."""

from __future__ import annotations

from pathlib import Path

from recipes.orz.config import Config, TinyBase
from stepstack.core.run import Run
from stepstack.harness.training import outcome

DATA = {
    "chains": "sums of several terms, drawn on the spot",
    "prepared": "prepared problems of mathematics",
    "rows": "rows of your own",
    "reasoning_gym": "tasks of reasoning-gym",
    "task": "the rows of a task",
}
REWARDS = {"math": "a 0/1 reward alone", "file": "a reward of its own file", "model": "a reward model"}


def keep_report(run: Run[Config]) -> None:
    """Have the report written while the run goes on."""
    cfg = run.config
    stages = {"base": "SFT"} if isinstance(cfg.model, TinyBase) else {}
    run.keep_report(write_report, about(cfg), stages | {"": cfg.algorithm})


def about(cfg: Config) -> str:
    """Sentence on what is trained on what."""
    size = "" if cfg.model.size is None else f" of {cfg.model.size:,} parameters"
    return (
        f"Open-Reasoner-Zero: a {cfg.model.type} language model{size} learns to reason by {cfg.algorithm} from "
        f"{REWARDS[cfg.reward.type]}, on {DATA[cfg.data.type]}; {cfg.steps} steps of {cfg.rollouts_per_step} answers."
    )


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder."""
    return outcome.write(folder)
