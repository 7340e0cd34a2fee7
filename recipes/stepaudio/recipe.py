"""Step-Audio (arXiv 2502.11946) in small: a teacher speaks new texts, a student learns what passes the filters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recipes.stepaudio import data
from recipes.stepaudio.config import PACKAGES, PLAYED, Config
from recipes.stepaudio.data import check_codec, text_tokenizer, voices_text
from recipes.stepaudio.evaluation.open import open_engine
from recipes.stepaudio.model import student_takes
from recipes.stepaudio.released import data as released_data
from recipes.stepaudio.released import model as released
from recipes.stepaudio.report import keep_report, write_report
from recipes.stepaudio.stages import train_by_reward, train_student, train_teacher
from recipes.stepaudio.tasks import tasks
from stepstack.core import preflight
from stepstack.core.run import Run
from stepstack.harness.training.outcome import measure, report_outcome, write_model_cards
from stepstack.models.lm.config import Pretrained

__all__ = ["Config", "describe", "open_engine", "prepare", "tasks", "train", "write_report"]

log = logging.getLogger(__name__)


def train(run: Run[Config]) -> None:
    """The whole recipe: the teacher, the data engine, the student, GRPO where the config has it, and all of them
    heard."""
    cfg = run.config
    keep_report(run)
    preflight.refuse(preflight.packages(cfg))
    if isinstance(cfg.model, Pretrained):
        train_published(run)
        return
    check_codec(cfg)
    evals = cfg.evals
    if evals and (missing := missing_judges(cfg)):
        log.warning("words are not judged: %s; the report plays what is spoken", missing)
        evals = (PLAYED,)
    tokenizer = text_tokenizer(cfg)
    teacher = train_teacher(run, tokenizer)
    student = train_student(run, student_takes(run, teacher), tokenizer, teacher)
    model = student if cfg.rl is None else train_by_reward(run, student, tokenizer)
    evaluate(run, "before", teacher, evals)
    if model != student:
        evaluate(run, "student", student, evals)
    evaluate(run, "after", model, evals)
    report_outcome(run)
    run.finish()


def train_published(run: Run[Config]) -> None:
    """A published model learns takes in files, or what a published teacher speaks; it is heard where the config asks
    for it and names what plays its codes."""
    student = released.train(run)
    if run.config.evals:
        evaluate(run, "after", student, run.config.evals)
    write_model_cards(run)
    run.finish()


def evaluate(run: Run[Config], when: str, folder: Path, evals: Sequence[str]) -> None:
    """Figures of the teacher (``before``), of the student that GRPO begins with (``student``), or of what the run makes
    (``after``), in ``evals``."""
    measure(run, when, open_engine(run.config, folder, run.device), str(folder), tasks(run.config), evals)


def missing_judges(cfg: Config) -> str:
    """Packages that the evaluation's recogniser lacks, and how they are installed; "" where all are there."""
    if cfg.judge == "none":
        return "judge=none: there is no recogniser to hear it"
    lacking = [package for package in PACKAGES[cfg.judge] if find_spec(package.module) is None]
    return "; ".join(f"the judge {cfg.judge} needs {package.module}: {package.install}" for package in lacking)


def describe(cfg: Config) -> dict[str, Any]:
    """Numbers that follow from those of a config, for ``--dry-run``."""
    if isinstance(cfg.model, Pretrained):
        return describe_published(cfg, cfg.model)
    teacher, spoken, shape = cfg.teacher, cfg.drawn.engine * cfg.engine.takes, cfg.student_shape
    return {
        "speakers": voices_text(cfg.drawn.speakers),
        "teacher": f"{teacher.model.size:,} parameters, {teacher.steps} updates on {cfg.drawn.train} recordings",
        "engine": f"{spoken} takes of {cfg.drawn.engine} texts",
        "student": f"{shape.size:,} parameters, {cfg.steps} updates on {cfg.source}",
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
