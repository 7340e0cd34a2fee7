"""The problems of a run: scenes made on the spot, or a prepared folder of a published set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from data.drawn import scenes
from data.drawn.scenes import Objects, Words
from data.drawn.splits import SPLITS, Split
from data.media.images import Record
from data.prepare.manifest import MANIFEST, read_manifest
from data.sets import coco, page_ocr, pixmo_count, refcoco
from recipes.perception.config import Config, PreparedPictures, PromptConfig
from recipes.perception.model import Processor
from recipes.perception.prompt import encode
from recipes.perception.reward import gold_of
from stepstack.config import ROOT, ConfigError
from stepstack.generation.types import Prompt
from stepstack.records import Problem

log = logging.getLogger(__name__)

SETS = {"refcoco": refcoco, "pixmo_count": pixmo_count, "page_ocr": page_ocr, "coco": coco}


@dataclass(frozen=True, slots=True)
class Splits:
    train: list[Prompt]
    select: list[Prompt]
    test: list[Prompt]


def records(cfg: Objects | Words | PreparedPictures, split: Split) -> Sequence[Record]:
    match cfg:
        case Objects() | Words():
            return scenes.problems(cfg, split)
        case PreparedPictures():
            return held_out(cfg, {"train": "train", "select": cfg.select, "test": cfg.test}[split])


def held_out(cfg: PreparedPictures, name: str) -> Sequence[Record]:
    """The records of "train" or an eval of a prepared folder."""
    return SETS[cfg.set].load(ROOT / cfg.folder, name, cfg.images)[: cfg.limit]


def evals_of(cfg: Objects | Words | PreparedPictures) -> list[str]:
    """The evals that a prepared folder holds: of RefCOCO val, testA, ... as they were named; none before it is made."""
    if not isinstance(cfg, PreparedPictures) or not (ROOT / cfg.folder / MANIFEST).is_file():
        return []
    return sorted(read_manifest(ROOT / cfg.folder / MANIFEST, cfg.set).evals)


def problems(cfg: Config, split: Split) -> list[Problem]:
    return as_problems(cfg, records(cfg.data, split))


def as_problems(cfg: Config, rows: Sequence[Record]) -> list[Problem]:
    """Records as problems: the gold is in pixels, the record itself is in ``meta``."""
    found = []
    for record in rows:
        if record.task != cfg.task:
            raise ConfigError(f"task is {cfg.task}, but the data is for {record.task}")
        gold = gold_of(record, cfg.model.model_size(record.size))
        found.append(Problem(record.index, record.question, gold, {"record": record}))
    return found


def as_prompt(problem: Problem, processor: Processor, cfg: PromptConfig) -> Prompt:
    return encode(problem, problem.meta["record"], processor.tokenizer, processor.patcher, cfg)


def load_prompts(cfg: Config, processor: Processor) -> Splits:
    """Prompts of every split; those that are too long are left out and counted."""
    made = {}
    for split in SPLITS:
        prompts = [as_prompt(problem, processor, cfg.prompt) for problem in problems(cfg, split)]
        made[split] = [prompt for prompt in prompts if len(prompt.ids) <= cfg.prompt.max_tokens]
        if dropped := len(prompts) - len(made[split]):
            log.warning(
                "%d of %d %s prompts are longer than prompt.max_tokens=%d and left out",
                dropped, len(prompts), split, cfg.prompt.max_tokens,
            )  # fmt: skip
    return Splits(**made)


def prepare(cfg: Config) -> str:
    """``make data``: write the data that a config reads; returns a line to print."""
    match cfg.data:
        case PreparedPictures() as kind:
            if not kind.source:
                raise ConfigError("data.source is empty: name the files, folders or hf:names to prepare from")
            manifest = SETS[kind.set].prepare(ROOT / kind.folder, kind.source, kind.evals, kind.options)
            return f"{ROOT / kind.folder}: {manifest.counts}"
        case kind:
            return f"{cfg.name}: the data ({kind.type}) is drawn while training; there is nothing to prepare"
