"""Task of orz-tiny: signed chains such as ``6-3+1-1+9-6``, whose partial sums stay within 0..20.

A hash of the text decides which chains are held out, so no stage of training can ever see one.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from data.drawn.splits import Split, split_of
from stepstack.config import ConfigError, Strict
from stepstack.records import Problem

MAX_FAILED_DRAWS = 100_000  # draws without a new chain, after which there are no more


@dataclass(frozen=True, kw_only=True, slots=True)
class Chains(Strict):
    """Signed sums that are drawn, and the sizes of the sets of them."""

    type: Literal["chains"] = "chains"
    """Choice of the data: drawn sums."""
    terms: tuple[PositiveInt, PositiveInt] = (5, 7)
    """Least and most terms of a chain."""
    largest_term: PositiveInt = 9
    """Largest term, without its sign."""
    largest_sum: PositiveInt = 20
    """Largest partial sum; the least is 0."""
    train: NonNegativeInt = 20000
    """Distinct chains of the training set."""
    select: NonNegativeInt = 256
    """Distinct chains that are watched during training; disjoint from the other sets."""
    test: NonNegativeInt = 1024
    """Distinct chains that are reported; disjoint from the other sets."""
    seed: NonNegativeInt = 0
    """Seed of the drawing; which chains are held out does not depend on it."""

    def __post_init__(self) -> None:
        if self.terms[0] > self.terms[1]:
            raise ValueError(f"data.terms={list(self.terms)} must rise: least, then most")


def problems(cfg: Chains, split: Split) -> list[Problem]:
    """Distinct chains of a split, a pure function of the config. ConfigError where there are not that many."""
    wanted = {"train": cfg.train, "select": cfg.select, "test": cfg.test}[split]
    rng = random.Random(f"{cfg.seed}-{split}")
    sums: dict[str, int] = {}
    in_vain = 0
    while len(sums) < wanted:
        terms = draw(rng, cfg)
        text = show(terms)
        if split_of(text) == split and text not in sums:
            sums[text], in_vain = sum(terms), 0
        elif (in_vain := in_vain + 1) == MAX_FAILED_DRAWS:
            raise ConfigError(
                f"data.{split}={wanted}: only {len(sums)} such chains were found; ask for fewer, or for more terms"
            )
    return [Problem(i, text, str(total)) for i, (text, total) in enumerate(sums.items())]


def draw(rng: random.Random, cfg: Chains) -> list[int]:
    """Signed terms of one chain. A term that would leave 0..largest_sum is drawn again."""
    terms = [rng.randint(1, cfg.largest_term)]
    length = rng.randint(*cfg.terms)
    while len(terms) < length:
        term = rng.choice((-1, 1)) * rng.randint(1, cfg.largest_term)
        if 0 <= sum(terms) + term <= cfg.largest_sum:
            terms.append(term)
    return terms


def exceeds(problem: Problem, cfg: Chains) -> bool:
    """Whether a chain has a term or a partial sum that those of ``cfg`` never have."""
    terms = [int(term) for term in re.findall(r"[+-]?\d+", problem.text)]
    return max(map(abs, terms)) > cfg.largest_term or max(itertools.accumulate(terms)) > cfg.largest_sum


def show(terms: list[int]) -> str:
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def worked_solution(terms: list[int], rng: random.Random, slip: float) -> str:
    """Step-by-step reasoning. Each step is wrong by one with probability ``slip``, and the error carries on."""
    total, steps = terms[0], []
    for term in terms[1:]:
        result = total + term + (rng.choice((-1, 1)) if rng.random() < slip else 0)
        result = max(0, result)
        steps.append(f"{total}{term:+d}={result}")
        total = result
    return ";".join(steps) + answer(total)


def answer(value: int | str) -> str:
    return f"</think><answer>\\boxed{{{value}}}</answer>"
