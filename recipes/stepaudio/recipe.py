"""Step-Audio (arXiv 2502.11946) in small: a teacher speaks new texts, a student learns what passes the filters."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recipes.stepaudio import data
from recipes.stepaudio.config import PACKAGES, Config
from recipes.stepaudio.data import check_codec, layout_of, rows, text_tokenizer
from recipes.stepaudio.evaluation.open import open_engine
from recipes.stepaudio.model import fit, student_takes, train_teacher
from recipes.stepaudio.released import data as released_data
from recipes.stepaudio.released import model as released
from recipes.stepaudio.report import write_report
from recipes.stepaudio.tasks import tasks
from stepstack.core.run import Run
from stepstack.harness.training.outcome import measure, report_outcome
from stepstack.models.lm.config import Pretrained

__all__ = ["Config", "describe", "open_engine", "prepare", "tasks", "train", "write_report"]

log = logging.getLogger(__name__)


def train(run: Run[Config]) -> None:
    """The whole recipe: the teacher, the data engine, the student, and both of them heard."""
    cfg = run.config
    if isinstance(cfg.model, Pretrained):
        train_published(run)
        return
    check_codec(cfg)
    tokenizer = text_tokenizer(cfg)
    teacher = train_teacher(run, tokenizer)
    takes = student_takes(run, teacher)
    learned = rows(takes, tokenizer, layout_of(cfg, tokenizer))
    fit(run, cfg.student_shape, cfg.student, learned, tokenizer=tokenizer, batch=cfg.batch, steps=cfg.steps)
    student = run.export("policy", run.dir / "model", tokenizer)
    if missing := missing_judges(cfg):
        log.warning("not evaluated: %s", missing)
    else:
        evaluate(run, "before", teacher)
        evaluate(run, "after", student)
        report_outcome(run, write_report)
    run.finish()


def train_published(run: Run[Config]) -> None:
    """A published model learns takes in files, or what a published teacher speaks; it is heard where the config asks
    for it and names what plays its codes."""
    student = released.train(run)
    if run.config.evals:
        evaluate(run, "after", student)
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
    if isinstance(cfg.model, Pretrained):
        return describe_published(cfg, cfg.model)
    teacher, spoken, shape = cfg.teacher, cfg.drawn.engine * cfg.engine.takes, cfg.student_shape
    return {
        "teacher": f"{teacher.model.size:,} parameters, {teacher.steps} updates on {cfg.drawn.train} recordings",
        "engine": f"{spoken} takes of {cfg.drawn.engine} texts",
        "student": f"{shape.size:,} parameters, {cfg.steps} updates on {cfg.source}",
        "evaluated by": missing_judges(cfg) or cfg.judge,
        "processes": cfg.launch.processes,
        "folder": cfg.folder,
    }


def describe_published(cfg: Config, place: Pretrained) -> dict[str, Any]:
    """The same of a published model."""
    length = f"{cfg.steps} updates" if cfg.epochs is None else f"{cfg.epochs:g} epochs"
    teacher = "none" if cfg.engine.teacher is None else f"{cfg.engine.teacher.path}, {cfg.engine.takes} takes of a line"
    return {
        "student": f"{place.path}, {length} of {cfg.batch} on {cfg.source}",
        "teacher": teacher,
        "micro-batch": f"up to {cfg.layout.max_tokens} tokens, {'packed' if cfg.layout.pack else 'padded'}",
        "played by": cfg.released.decoder or "nothing: give released.decoder",
        "processes": f"{cfg.launch.processes} = {cfg.launch.nodes} nodes x {cfg.launch.processes_per_node}",
        "folder": cfg.folder,
    }


def prepare(cfg: Config) -> str:
    """``stepstack data``: tokens of recordings, by the offline voice or from files."""
    return released_data.prepare(cfg) if isinstance(cfg.model, Pretrained) else data.prepare(cfg)
