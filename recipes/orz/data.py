"""The problems of a run, as prompts: training, selection (watched) and test (reported)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from data import orz_math
from data.splits import SPLITS
from recipes.orz import chains
from recipes.orz.chains import Chains
from recipes.orz.prompt import PromptConfig, encode
from stepstack.config import ROOT, ConfigError, Strict
from stepstack.harness import samples
from stepstack.records import Problem
from stepstack.rl.types import Prompt

if TYPE_CHECKING:
    from recipes.orz.recipe import Config

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared(Strict):
    """A folder that ``make data`` prepares from ``source`` (files, folders or hf:names, in ORZ's train schema) and
    ``evals`` (ORZ's eval schema), which are kept out of training. ``select`` and ``test`` name eval sets.

    ``hard``: the samples.jsonl of the training split (``stepstack eval NAME --tasks train --samples 64``); training
    then keeps the problems with fewer than 4 right, as ORZ mines its annealing set.
    """

    type: Literal["prepared"] = "prepared"
    folder: str = "prepared/orz_math"
    source: tuple[str, ...] = ()
    evals: tuple[str, ...] = ()
    select: tuple[str, ...] = ("aime2024",)
    test: tuple[str, ...] = ("aime2024", "math500")
    hard: str | None = None
    limit: int | None = None  # the first so many training and eval problems, for a trial


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningGym(Strict):
    """A procedural data set of the package reasoning-gym (extra ``reasoning``). The three splits have seeds of their
    own, and questions that occur in an evaluation split are taken out of training."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str = "chain_sum"
    options: dict[str, Any] = field(default_factory=dict)
    train: int = 5000
    select: int = 64
    test: int = 256
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Splits:
    train: list[Prompt]
    select: list[Prompt]
    test: list[Prompt]


def problems(cfg: Chains | Prepared | ReasoningGym) -> dict[str, list[Problem]]:
    """Each split's problems; indices are unique within a split."""
    match cfg:
        case Chains():
            splits = [chains.problems(cfg, split) for split in SPLITS]
        case Prepared():
            splits = _prepared(cfg)
        case ReasoningGym():
            splits = _reasoning_gym(cfg)
    return dict(zip(SPLITS, splits, strict=True))


def load_prompts(cfg: Config, tokenizer: Any) -> Splits:
    """Tokenised splits; prompts that are too long go by ``prompt.overlong``."""
    named = problems(cfg.data)
    return Splits(**{name: _encode(name, split, tokenizer, cfg.prompt) for name, split in named.items()})


def _encode(name: str, problems: Sequence[Problem], tokenizer: Any, cfg: PromptConfig) -> list[Prompt]:
    encoded = [encode(problem, tokenizer, cfg.max_tokens, cfg.overlong, cfg.style) for problem in problems]
    prompts = [prompt for prompt in encoded if prompt is not None]
    if dropped := len(encoded) - len(prompts):
        log.warning(
            "%d of %d %s prompts are longer than prompt.max_tokens=%d and left out",
            dropped, len(encoded), name, cfg.max_tokens,
        )  # fmt: skip
    return prompts


def _prepared(cfg: Prepared) -> list[list[Problem]]:
    folder = ROOT / cfg.folder
    train = orz_math.load(folder, "train")
    if cfg.hard is not None:
        right: Counter[int] = Counter()
        for sample in samples.read(ROOT / cfg.hard):
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
        case Prepared() as kind:
            if not kind.source:
                raise ConfigError("data.source is empty: name the files, folders or hf:names to prepare from")
            manifest = orz_math.prepare(ROOT / kind.folder, kind.source, kind.evals)
            return f"{ROOT / kind.folder}: {manifest.counts}"
        case _:
            return f"{cfg.name}: the data ({cfg.data.type}) is made while training; there is nothing to prepare"
