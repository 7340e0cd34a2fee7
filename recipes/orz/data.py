"""The problems of a run, as prompts: training, selection (watched) and test (reported)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.drawn import chains
from data.drawn.chains import Chains
from data.drawn.splits import SPLITS, Split
from data.sets import orz_math
from recipes.orz.config import Config, PreparedMath, ReasoningGym
from recipes.orz.prompt import encode, render
from stepstack.config import ROOT, ConfigError
from stepstack.generation.types import Prompt
from stepstack.harness import answers
from stepstack.harness.config import TaskData
from stepstack.harness.training.task_data import load_task, split_rows
from stepstack.records import Problem
from stepstack.rl.prompts import PromptSplits

log = logging.getLogger(__name__)


def problems(cfg: Chains | PreparedMath | ReasoningGym | TaskData) -> Mapping[Split, list[Problem]]:
    """Each split's problems; indices are unique within a split."""
    match cfg:
        case Chains():
            return {split: chains.problems(cfg, split) for split in SPLITS}
        case PreparedMath():
            return dict(zip(SPLITS, _prepared(cfg), strict=True))
        case ReasoningGym():
            return dict(zip(SPLITS, _reasoning_gym(cfg), strict=True))
        case TaskData():
            return split_rows(cfg, load_task(cfg))


def load_prompts(cfg: Config, tokenizer: Any) -> PromptSplits:
    """Tokenised splits; prompts that are too long go by ``prompt.overlong``."""
    named = problems(cfg.data)
    return PromptSplits(**{name: _encode(name, split, tokenizer, cfg) for name, split in named.items()})


def _encode(name: str, problems: Sequence[Problem], tokenizer: Any, cfg: Config) -> list[Prompt]:
    text = prompt_text(cfg)
    encoded = [
        encode(problem, text(problem), tokenizer, cfg.prompt.max_tokens, cfg.prompt.overlong) for problem in problems
    ]
    prompts = [prompt for prompt in encoded if prompt is not None]
    if dropped := len(encoded) - len(prompts):
        where = f"prompt.max_tokens={cfg.prompt.max_tokens}"
        log.warning("%d of %d %s prompts are longer than %s and left out", dropped, len(encoded), name, where)
    return prompts


def prompt_text(cfg: Config) -> Callable[[Problem], str]:
    """How a problem is put to the model: in the config's style, or as a task file puts it. ConfigError for a task
    that asks with more than a text."""
    if not isinstance(cfg.data, TaskData):
        return lambda problem: render(problem.text, cfg.prompt.style)
    task = load_task(cfg.data)

    def text(problem: Problem) -> str:
        request = task.request(problem)
        if not isinstance(request, str):
            raise ConfigError(
                f"{task.name}: recipe orz trains on plain text, row {problem.index} asks with "
                f"{request!r:.80}: give it text"
            )
        return request

    return text


def _prepared(cfg: PreparedMath) -> list[list[Problem]]:
    folder = ROOT / cfg.folder
    train = orz_math.load(folder, "train")
    if cfg.hard is not None:
        right: Counter[int] = Counter()
        for sample in answers.read(ROOT / cfg.hard):
            right[sample.index] += bool(sample.score)
        train = orz_math.hard_set(train, [right[problem.index] for problem in train])
    train = train[: cfg.limit]
    evals = [
        _renumbered([p for name in names for p in orz_math.load(folder, name)[: cfg.limit]])
        for names in (cfg.select, cfg.test)
    ]
    return [train, *evals]


def _renumbered(problems: Sequence[Problem]) -> list[Problem]:
    """Indices are unique within a split."""
    return [Problem(i, p.text, p.gold, p.meta) for i, p in enumerate(problems)]


def _reasoning_gym(cfg: ReasoningGym) -> list[list[Problem]]:
    import reasoning_gym  # an extra: imported where it is asked for

    def split(size: int, seed: int) -> list[Problem]:
        rows = reasoning_gym.create_dataset(cfg.dataset, size=size, seed=seed, **cfg.options)
        return [Problem(i, row["question"], str(row["answer"])) for i, row in enumerate(rows)]

    select, test = split(cfg.select, cfg.seed + 1), split(cfg.test, cfg.seed + 2)
    seen = {p.text for p in (*select, *test)}
    return [[p for p in split(cfg.train, cfg.seed) if p.text not in seen], select, test]


def prepare(cfg: Config) -> str:
    """``make data``: write the data that a config reads; returns a line to print."""
    match cfg.data:
        case PreparedMath() as kind:
            if not kind.source:
                raise ConfigError("data.source is empty: name the files, folders or hf:names to prepare from")
            manifest = orz_math.prepare(ROOT / kind.folder, kind.source, kind.evals)
            return f"{ROOT / kind.folder}: {manifest.counts}"
        case _:
            return f"{cfg.name}: the data ({cfg.data.type}) is made while training; there is nothing to prepare"
