"""StreamRL's ranker: how long will the response to a prompt be? A scalar head on a copy of the base model says.

It learns the logarithm of lengths, which differ by factors; of its estimates only the order is used.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, TypeGuard

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from stepstack.bounds import LearningRate
from stepstack.config import ConfigError, Strict
from stepstack.generation.service.config import FOLDER, LENGTHS
from stepstack.models.lm.value import Value
from stepstack.report import jsonl

WEIGHTS, FACTS = "ranker.safetensors", "ranker.json"
LONG_SHARE = 0.2  # of the prompts, which the paper sets apart
READ_AT_A_TIME = 256  # prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class RankerConfig(Strict):
    """How a ranker learns."""

    steps: PositiveInt = 200
    """Updates."""
    batch: PositiveInt = 64
    """Prompts of an update."""
    lr: Annotated[LearningRate, Field(gt=0)] = 1e-3
    """Learning rate of AdamW."""
    seed: NonNegativeInt = 0
    """Seed of the head and of the order of the prompts."""


class LengthRanker:
    """Estimates of response lengths, made of the base model's body; ``lm`` itself is left as it is."""

    def __init__(self, lm: PreTrainedModel, seed: int = 0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = Value(copy.deepcopy(lm)).to(lm.device)
        self.device, self.mean = lm.device, 0.0  # mean of the logarithms that it learned

    def fit(self, prompts: Sequence[Sequence[int]], lengths: Sequence[float], cfg: RankerConfig) -> list[float]:
        """Learn pairs of a prompt's ids and the tokens of a response to it; a prompt may come several times. Returns
        the mean squared error of the logarithms at each update.

        ConfigError for no pairs, for lengths below 1 or not finite, and where the error does not stay finite.
        """
        if not prompts or len(prompts) != len(lengths) or not all(1 <= length < math.inf for length in lengths):
            raise ConfigError(f"{len(prompts)} prompts and {len(lengths)} lengths, each finite, at least 1: give pairs")
        targets = torch.tensor(lengths, dtype=torch.float32).log()
        self.mean = float(targets.mean())
        targets = (targets - self.mean).to(self.device)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=cfg.lr, weight_decay=0.0)
        order = torch.Generator().manual_seed(cfg.seed)
        errors = []
        self.model.train()
        for _ in range(cfg.steps):
            places = torch.randint(len(prompts), (min(cfg.batch, len(prompts)),), generator=order).tolist()
            error = (self._forward([prompts[at] for at in places]) - targets[places]).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            errors.append(error.item())
            if not math.isfinite(errors[-1]):
                raise ConfigError(
                    f"the ranker's error is {errors[-1]} after {len(errors)} updates: lower lr={cfg.lr:g}"
                )
        return errors

    @torch.no_grad()
    def estimate(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Tokens that the response to each prompt may have."""
        self.model.eval()
        parts = [prompts[start : start + READ_AT_A_TIME] for start in range(0, len(prompts), READ_AT_A_TIME)]
        return [value for part in parts for value in (self._forward(part) + self.mean).exp().tolist()]

    def _forward(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The head's output [B] at the last token of each prompt."""
        rows = [torch.tensor(prompt) for prompt in prompts]
        ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        width = ids_BT.shape[1]
        positions_BT = torch.arange(width, device=self.device).expand(len(rows), width)
        last_B = torch.tensor([at * width + len(row) - 1 for at, row in enumerate(rows)], device=self.device)
        return self.model(ids_BT, positions_BT, last_B)

    def save(self, folder: Path) -> None:
        """Write the weights and what else an estimate needs, in place of an earlier ranker."""
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in self.model.state_dict().items()}, partial / WEIGHTS)
        jsonl.write_json_atomic(partial / FACTS, {"mean": self.mean})
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    @classmethod
    def load(cls, folder: Path, lm: PreTrainedModel) -> LengthRanker:
        """The ranker that was saved, on a copy of ``lm``. ConfigError where there is none, and where that is another
        model."""
        if not (folder / WEIGHTS).is_file():
            raise ConfigError(f"{folder} holds no ranker: `stepstack ranker NAME` makes one of a streamed run")
        ranker, saved = cls(lm), load_file(folder / WEIGHTS)
        own = {name: value.shape for name, value in ranker.model.state_dict().items()}
        if differ := sorted(own.items() ^ {name: value.shape for name, value in saved.items()}.items()):
            raise ConfigError(f"{folder} holds a ranker of another model: {differ[0][0]} differs: train it anew")
        ranker.model.load_state_dict(saved)
        ranker.mean = float(jsonl.read_json(folder / FACTS, "mean")["mean"])
        return ranker


def read_lengths(run: Path, late_share: float) -> dict[int, float]:
    """Mean tokens of the responses to each problem that a streamed run in this folder has sampled in the last
    ``late_share`` of its steps: in the first ones the policy still changes how long it answers. A step that was sampled
    again after a kill counts once. ConfigError where there are none, for a row that is none of them, and for a share
    that is not above 0 and at most 1."""
    if not 0 < late_share <= 1:
        raise ConfigError(f"a late share of {late_share:g} of the steps: give one above 0, at most 1")
    file = run / FOLDER / LENGTHS
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: train with stream: first, which keeps the lengths of its responses")
    by_step: dict[tuple[int, int], list[int]] = {}
    for number, row in enumerate(jsonl.read(file), 1):
        step, problem, tokens = (row.get(key) for key in ("step", "problem", "tokens"))
        if type(step) is not int or type(problem) is not int or not _are_lengths(tokens):
            raise ConfigError(f"{file}:{number}: no row of step, problem and tokens: remove it")
        by_step[step, problem] = tokens
    steps = sorted({step for step, _ in by_step})
    late = set(steps[len(steps) - math.ceil(late_share * len(steps)) :])
    problems: dict[int, list[int]] = {}
    for (step, problem), counts in by_step.items():
        if step in late:
            problems.setdefault(problem, []).extend(counts)
    return {problem: fmean(counts) for problem, counts in problems.items()}


def _are_lengths(tokens: object) -> TypeGuard[list[int]]:
    return isinstance(tokens, list) and bool(tokens) and all(type(count) is int and count > 0 for count in tokens)


def recall(estimates: Sequence[float], lengths: Sequence[float], share: float = LONG_SHARE) -> float:
    """Share of the prompts with the longest estimates that are truly among the longest; as many of either as ``share``
    of all (the paper's table 4). Of equal lengths at the edge each counts as long."""
    count = max(1, round(share * len(lengths)))
    edge = sorted(lengths, reverse=True)[count - 1]
    longest = sorted(range(len(estimates)), key=lambda at: (-estimates[at], at))[:count]
    return sum(lengths[at] >= edge for at in longest) / count
