"""The problems of a run, as prompts: training, selection (watched) and test (reported)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from data import orz_math
from recipes.orz import chains
from recipes.orz.chains import Chains
from recipes.orz.prompt import PromptConfig, encode
from stepstack.config import ROOT, Strict
from stepstack.records import Problem
from stepstack.rl.types import Prompt

if TYPE_CHECKING:
    from recipes.orz.recipe import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared(Strict):
    """A folder that ``data/orz_math.py`` prepared (``stepstack data orz_math``). ``select`` and ``test`` name its eval
    sets; ``hard`` keeps only the problems listed in that file of indices (the annealing stage)."""

    type: Literal["prepared"] = "prepared"
    folder: str = "prepared/orz_math"
    select: tuple[str, ...] = ("aime2024",)
    test: tuple[str, ...] = ("math500",)
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


def load_prompts(cfg: Config, tokenizer: Any) -> Splits:
    """Tokenised splits; prompts that are too long go by ``prompt.overlong``."""
    match cfg.data:
        case Chains() as kind:
            train, select, test = (chains.problems(kind, split) for split in ("train", "select", "test"))
        case Prepared() as kind:
            train, select, test = _prepared(kind)
        case ReasoningGym() as kind:
            train, select, test = _reasoning_gym(kind)
    return Splits(*(_encode(split, tokenizer, cfg.prompt) for split in (train, select, test)))


def _encode(problems: Sequence[Problem], tokenizer: Any, cfg: PromptConfig) -> list[Prompt]:
    prompts = [encode(problem, tokenizer, cfg.max_tokens, cfg.overlong, cfg.style) for problem in problems]
    return [prompt for prompt in prompts if prompt is not None]


def _prepared(cfg: Prepared) -> list[list[Problem]]:
    folder = ROOT / cfg.folder
    train = orz_math.load(folder, "train")[: cfg.limit]
    evals = [_renumbered([p for name in names for p in orz_math.load(folder, name)[: cfg.limit]]) for names in (cfg.select, cfg.test)]
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
