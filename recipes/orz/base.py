"""orz-tiny's base model: a brief SFT that teaches step-by-step sums and then buries them under blurted answers.

The result is what the paper starts from, in small: a model that can reason and mostly does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.splits import split_of
from recipes.orz.chains import Chains, answer, draw, show, worked
from recipes.orz.prompt import render
from stepstack.config import Save, Strict
from stepstack.core.optim import Muon, Optim, Schedule, TrainableConfig
from stepstack.core.run import Run, stage
from stepstack.loops import supervised
from stepstack.models import tiny
from stepstack.models.policy import Policy
from stepstack.rl.batch import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyBase(Strict):
    """The model's shape, the SFT's length, and the mix of (blurted, worked, useless) demonstrations in the phase that
    teaches and in the phase that buries; ``slip`` is the chance of a wrong step in a worked one, ``guess`` that of a
    blurted answer being off by up to 3, as guesses are."""

    type: Literal["tiny"] = "tiny"
    hidden: int = 96
    layers: int = 3
    intermediate: int = 256
    steps: int = 300
    batch: int = 128
    teach: float = 0.6  # fraction of the steps
    teach_mix: tuple[float, float, float] = (0.10, 0.85, 0.05)
    bury_mix: tuple[float, float, float] = (0.72, 0.18, 0.10)
    slip: float = 0.04
    guess: float = 0.6
    optim: Optim = Muon(lr=0.02, adamw_lr=3e-3, schedule=Schedule(kind="linear", warmup=10))


def make(run: Run, cfg: TinyBase, chains: Chains, out: Path) -> None:
    """The base model of a run, made in ``out`` by a stage of the run, or found there finished."""
    if not out.is_dir():
        _train(stage(run, "base", eval_every=0, save=Save(every=100, keep=1)), cfg, chains, out)


def untrained(cfg: TinyBase, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The tiny model as it is born: what the SFT starts from, and a way to try other data through the same path."""
    tokenizer = tiny.tokenizer()
    shape = {"hidden": cfg.hidden, "layers": cfg.layers, "intermediate": cfg.intermediate}
    return tiny.qwen2(len(tokenizer), seed=seed, **shape), tokenizer


def keep(run: Run, make: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]], out: Path) -> None:
    """Write a model that would exist only in memory as a folder, once."""
    if run.is_main and not out.is_dir():
        lm, tokenizer = make()
        partial = out.with_name(f".{out.name}.partial")
        lm.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(out)
    run.accelerator.wait_for_everyone()


def _train(run: Run, cfg: TinyBase, chains: Chains, out: Path) -> None:
    lm, tokenizer = untrained(cfg, run.config.seed)
    policy = run.trainable("policy", Policy(lm), TrainableConfig(optim=cfg.optim), total_updates=cfg.steps)
    supervised.train(
        run,
        policy=policy,
        rows=lambda step: demonstrations(cfg, chains, tokenizer, run.config.seed, step),
        steps=cfg.steps,
        layout=run.config.layout,
    )
    run.export("policy", out, tokenizer)
    run.finish()


def demonstrations(cfg: TinyBase, chains: Chains, tokenizer, seed: int, step: int) -> list[Row]:
    """One SFT batch: a pure function of (seed, step), none of it from a held-out chain."""
    rng = random.Random(f"{seed}-{step}")
    mix = cfg.teach_mix if step < cfg.teach * cfg.steps else cfg.bury_mix
    rows: list[Row] = []
    while len(rows) < cfg.batch:
        terms = draw(rng, chains)
        text = show(terms)
        if split_of(text) != "train":
            continue
        kind = rng.choices(("blurted", "worked", "useless"), mix)[0]
        response = demonstration(kind, terms, rng, cfg)
        prompt_ids = tuple(tokenizer(render(text, "short")).input_ids)
        rows.append(Row(len(rows), prompt_ids, tuple(tokenizer(response).input_ids)))
    return rows


def demonstration(kind: str, terms: list[int], rng: random.Random, cfg: TinyBase) -> str:
    """blurted: an answer with no reasoning · worked: step by step · useless: no answer one could extract."""
    total = sum(terms)
    match kind:
        case "blurted":
            return answer(max(0, total + rng.randint(-3, 3)) if rng.random() < cfg.guess else total)
        case "worked":
            return worked(terms, rng, cfg.slip)
        case _:
            forms = (f"It is {total}.", f"</think>{total}", f"</think><answer>{total}</answer>")
            return rng.choice(forms) + tiny.EOS
