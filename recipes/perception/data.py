"""The problems of a run: scenes made on the spot, or a prepared folder of a published set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from data.drawn import scenes
from data.drawn.scenes import Objects, Words
from data.drawn.splits import SPLITS, Split
from data.media.images import Record, check_aspect
from data.prepare.manifest import MANIFEST, read_manifest
from data.sets import coco, page_ocr, pixmo_count, refcoco
from recipes.perception.config import Config, PreparedPictures
from recipes.perception.prompt import encode, request_of
from recipes.perception.reward import gold_of
from stepstack.config import ROOT, ConfigError
from stepstack.generation.prompts import Pictured
from stepstack.harness.config import TaskData
from stepstack.harness.training.task_data import load_task, split_rows
from stepstack.models.vision.processor import Processor
from stepstack.records import Problem
from stepstack.rl.prompts import PromptSplits

log = logging.getLogger(__name__)

SETS = {"refcoco": refcoco, "pixmo_count": pixmo_count, "page_ocr": page_ocr, "coco": coco}


def records(cfg: Objects | Words | PreparedPictures, split: Split) -> Sequence[Record]:
    match cfg:
        case Objects() | Words():
            return scenes.problems(cfg, split)
        case PreparedPictures():
            return held_out(cfg, {"train": "train", "select": cfg.select, "test": cfg.test}[split])


def held_out(cfg: PreparedPictures, name: str) -> Sequence[Record]:
    """The records of "train" or an eval of a prepared folder."""
    return SETS[cfg.set].load(ROOT / cfg.folder, name, cfg.images)[: cfg.limit]


def evals_of(cfg: Objects | Words | PreparedPictures | TaskData) -> list[str]:
    """The evals that a prepared folder holds: of RefCOCO val, testA, ... as they were named; none before it is made."""
    if not isinstance(cfg, PreparedPictures) or not (ROOT / cfg.folder / MANIFEST).is_file():
        return []
    return sorted(read_manifest(ROOT / cfg.folder / MANIFEST, cfg.set).evals)


def problems(cfg: Config, split: Split) -> list[Problem]:
    """The problems of a split; indices are unique within it."""
    if isinstance(cfg.data, TaskData):
        return split_rows(cfg.data, load_task(cfg.data))[split]
    return as_problems(cfg, records(cfg.data, split))


def as_problems(cfg: Config, rows: Sequence[Record]) -> list[Problem]:
    """Records as problems: the gold is in pixels, the record itself is in ``meta``."""
    numbered = []
    for record in rows:
        if record.task != cfg.task:
            raise ConfigError(f"task is {cfg.task}, but the data is for {record.task}: make them the same")
        check_aspect(record.size, f"row {record.index}: {record.pictures[0]}")
        gold = gold_of(record, cfg.model.model_size(record.size))
        numbered.append(Problem(record.index, record.question, gold, {"record": record}))
    return numbered


def request_maker(cfg: Config) -> Callable[[Problem], Pictured]:
    """How a problem is put to the model: by its record in the config's style, or as a task file puts it. ConfigError
    for a task that asks without pictures."""
    if not isinstance(cfg.data, TaskData):
        return lambda problem: request_of(problem.meta["record"], cfg.prompt)
    task = load_task(cfg.data)

    def request(problem: Problem) -> Pictured:
        pictured = task.request(problem)
        if not isinstance(pictured, Pictured):
            raise ConfigError(
                f"{task.name}: recipe perception asks with pictures, row {problem.index} has none: add them, "
                "or evaluate with recipe orz"
            )
        return pictured

    return request


def load_prompts(cfg: Config, processor: Processor) -> PromptSplits:
    """Prompts of every split; those that are too long are left out and counted."""
    request, splits = request_maker(cfg), {}
    for split in SPLITS:
        rows = problems(cfg, split)
        prompts = [encode(problem, request(problem), processor, cfg.prompt) for problem in rows]
        splits[split] = [prompt for prompt in prompts if len(prompt.ids) <= cfg.prompt.max_tokens]
        if dropped := len(prompts) - len(splits[split]):
            where = f"prompt.max_tokens={cfg.prompt.max_tokens}"
            log.warning("%d of %d %s prompts are longer than %s and left out", dropped, len(prompts), split, where)
    return PromptSplits(**splits)


def prepare(cfg: Config) -> str:
    """``make data``: write the data that a config reads; returns lines to print."""
    match cfg.data:
        case PreparedPictures() as kind:
            if not kind.source:
                raise ConfigError("data.source is empty: name the files, folders or hf:names to prepare from")
            manifest = SETS[kind.set].prepare(ROOT / kind.folder, kind.source, kind.evals, kind.options)
            lines = [f"{ROOT / kind.folder}: {manifest.counts}"]
            if cfg.task != "ocr":
                how = "as set" if kind.options.space else "as published" if kind.set == "coco" else "as they fit alone"
                read_as = f"space={manifest.options['source_space']} layout={manifest.options['layout']}"
                lines.append(f"boxes and points were read as {read_as}, {how}")
            return "\n".join(lines)
        case kind:
            return f"{cfg.name}: the data ({kind.type}) is drawn while training; there is nothing to prepare"
