"""Step-Audio (arXiv 2502.11946) in small: a teacher speaks new texts, a student learns what passes the filters."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recipes.stepaudio.config import PACKAGES, Config
from recipes.stepaudio.data import check_codec, prepare, text_tokenizer
from recipes.stepaudio.model import open_engine, student_takes
from recipes.stepaudio.report import write_report
from recipes.stepaudio.stages import train_by_reward, train_student, train_teacher
from recipes.stepaudio.tasks import tasks
from stepstack.core import preflight
from stepstack.core.run import Run
from stepstack.harness.training.outcome import measure, report_outcome

__all__ = ["Config", "describe", "open_engine", "prepare", "tasks", "train", "write_report"]

log = logging.getLogger(__name__)


def train(run: Run[Config]) -> None:
    """The whole recipe: the teacher, the data engine, the student, GRPO where the config has it, and all of them
    heard."""
    cfg = run.config
    preflight.refuse(preflight.packages(cfg))
    check_codec(cfg)
    tokenizer = text_tokenizer(cfg)
    teacher = train_teacher(run, tokenizer)
    student = train_student(run, student_takes(run, teacher), tokenizer, teacher)
    model = student if cfg.rl is None else train_by_reward(run, student, tokenizer)
    if missing := missing_judges(cfg):
        log.warning("not evaluated: %s", missing)
    else:
        evaluate(run, "before", teacher)
        if model != student:
            evaluate(run, "student", student)
        evaluate(run, "after", model)
        report_outcome(run, write_report)
    run.finish()


def evaluate(run: Run[Config], when: str, folder: Path) -> None:
    """Figures of the teacher (``before``), of the student that GRPO begins with (``student``), or of what the run makes
    (``after``)."""
    measure(run, when, open_engine(run.config, folder, run.device), str(folder), tasks(run.config))


def missing_judges(cfg: Config) -> str:
    """Packages that the evaluation's recogniser lacks, and how they are installed; "" where all are there."""
    if cfg.judge == "none":
        return "judge=none: there is no recogniser to hear it"
    lacking = [package for package in PACKAGES[cfg.judge] if find_spec(package.module) is None]
    return "; ".join(f"the judge {cfg.judge} needs {package.module}: {package.install}" for package in lacking)


def describe(cfg: Config) -> dict[str, Any]:
    """Numbers that follow from those of a config, for ``--dry-run``."""
    teacher, spoken = cfg.teacher, cfg.data.engine * cfg.engine.takes
    return {
        "teacher": f"{teacher.model.size:,} parameters, {teacher.steps} updates on {cfg.data.train} recordings",
        "engine": f"{spoken} takes of {cfg.data.engine} texts",
        "student": f"{cfg.model.size:,} parameters, {cfg.steps} updates on {cfg.source}",
        "distilled by": "takes alone" if cfg.distill is None else f"takes, and {cfg.distill.divergence} by token",
        "reinforced by": reinforced(cfg),
        "evaluated by": missing_judges(cfg) or cfg.judge,
        "processes": cfg.launch.processes,
        "folder": cfg.folder,
    }


def reinforced(cfg: Config) -> str:
    """Size of the stage of GRPO, and its reward."""
    if cfg.rl is None:
        return "nothing"
    return f"{cfg.rl.reward.type} reward, {cfg.rl.steps} steps of {cfg.rl.prompts} lines x {cfg.rl.takes} takes"
