"""Step-Audio (arXiv 2502.11946) in small: a teacher speaks new texts, a student learns what passes the filters."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recipes.stepaudio.config import PACKAGES, Config
from recipes.stepaudio.data import check_codec, layout_of, prepare, rows, text_tokenizer
from recipes.stepaudio.evaluation.open import open_engine
from recipes.stepaudio.model import fit, student_takes, train_teacher
from recipes.stepaudio.report import write_report
from recipes.stepaudio.tasks import tasks
from stepstack.core.run import Run
from stepstack.harness.training.outcome import measure, report_outcome

__all__ = ["Config", "describe", "open_engine", "prepare", "tasks", "train", "write_report"]

log = logging.getLogger(__name__)


def train(run: Run[Config]) -> None:
    """The whole recipe: the teacher, the data engine, the student, and both of them heard."""
    cfg = run.config
    check_codec(cfg)
    tokenizer = text_tokenizer(cfg)
    teacher = train_teacher(run, tokenizer)
    takes = student_takes(run, teacher)
    learned = rows(takes, tokenizer, layout_of(cfg, tokenizer))
    fit(run, cfg.model, cfg.student, learned, tokenizer=tokenizer, batch=cfg.batch, steps=cfg.steps)
    student = run.export("policy", run.dir / "model", tokenizer)
    if missing := missing_judges(cfg):
        log.warning("not evaluated: %s", missing)
    else:
        evaluate(run, "before", teacher)
        evaluate(run, "after", student)
        report_outcome(run, write_report)
    run.finish()


def evaluate(run: Run[Config], when: str, folder: Path) -> None:
    """Figures of the teacher (``before``) or the student (``after``)."""
    measure(run, when, open_engine(run.config, folder, run.device), str(folder), tasks(run.config))


def missing_judges(cfg: Config) -> str:
    """Packages that the evaluation's recogniser lacks, and how they are installed; "" where all are there."""
    lacking = [package for package in PACKAGES[cfg.judge] if find_spec(package.module) is None]
    return "; ".join(f"the judge {cfg.judge} needs {package.module}: {package.install}" for package in lacking)


def describe(cfg: Config) -> dict[str, Any]:
    """Numbers that follow from those of a config, for ``--dry-run``."""
    teacher, spoken = cfg.teacher, cfg.data.engine * cfg.engine.takes
    return {
        "teacher": f"{teacher.model.size:,} parameters, {teacher.steps} updates on {cfg.data.train} recordings",
        "engine": f"{spoken} takes of {cfg.data.engine} texts",
        "student": f"{cfg.model.size:,} parameters, {cfg.steps} updates on {cfg.source}",
        "evaluated by": missing_judges(cfg) or cfg.judge,
        "processes": cfg.launch.processes,
        "folder": cfg.folder,
    }
