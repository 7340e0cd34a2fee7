"""The stages of an M-DocSum run: instruction tuning, DPO, and what stands beside DPO."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from recipes.mdocsum.config import Config, Dpo, MoreSft, PretrainedVl, Sft
from recipes.mdocsum.data import lesson_rows, load_prompts
from recipes.mdocsum.model import load_model, placed_at
from recipes.mdocsum.pairs import gold_rows, load_pairs, row
from recipes.mdocsum.reward import make_metric
from stepstack.batching.pairs import Pair, PairMicroBatch, pair_minibatch
from stepstack.batching.reference import cached, cached_scores
from stepstack.batching.stream import RowStream
from stepstack.core.adapters import without_adapters
from stepstack.core.run import Run, stage
from stepstack.core.trainable import Trainable
from stepstack.generation.types import Generator, Prompt
from stepstack.loops import ppo, preference, supervised
from stepstack.models.vision.policy import VisionPolicy
from stepstack.models.vision.processor import Processor
from stepstack.rl.prompts import PromptSplits, PromptStream
from stepstack.rl.roles import roles
from stepstack.tuning.preference import PairScores

Select = Callable[[Trainable], Mapping[str, float]]  # figures of the selection split, with the weights of a role


def first_stage(run: Run[Config], kind: Sft, place: PretrainedVl) -> PretrainedVl:
    """Instruction tuning as a stage of the run, in runs/<name>/sft; where its model stands."""
    folder = run.dir / "sft" / "model"
    if not folder.is_dir():
        inner = stage(run, "sft")
        lm, processor = load_model(inner, place)
        inner.reseed()
        fit_lessons(inner, kind, lm, processor, load_prompts(run.config, processor))
        inner.export("policy", folder, processor)
        inner.finish()
    return placed_at(run.config, folder)


def fit_lessons(
    run: Run[Config],
    kind: Sft,
    lm: PreTrainedModel,
    processor: Processor,
    prompts: PromptSplits,
    select: Select | None = None,
) -> Trainable:
    """Instruction tuning on the training papers."""
    papers = [prompt.problem.meta["document"] for prompt in prompts.train]
    steps = kind.updates(len(papers))
    policy = run.trainable("policy", VisionPolicy(lm, processor.patcher, processor.banned), kind.policy, steps)
    rows = lesson_rows(run.config, kind, papers, processor, steps)
    evaluate = None if select is None else partial(select, policy)
    supervised.train(run, policy=policy, rows=rows, steps=steps, layout=run.config.layout, evaluate=evaluate)
    return policy


def fit_second(
    run: Run[Config],
    kind: Dpo | MoreSft,
    lm: PreTrainedModel,
    processor: Processor,
    generator: Generator,
    prompts: list[Prompt],
    select: Select,
) -> Trainable:
    """DPO on pairs, or SFT on their winners or on gold answers of the same papers."""
    cfg, prompts = run.config, prompts[: run.config.pairs.papers]
    gold = isinstance(kind, MoreSft) and kind.answers == "gold"
    made = [] if gold else load_pairs(run, prompts, generator, processor)
    generator.sleep()
    steps = kind.updates(len(prompts) if gold else len(made))
    copied = isinstance(kind, Dpo) and kind.loss.needs_reference and kind.reference == "model" and not kind.policy.lora
    beside = VisionPolicy(copy.deepcopy(lm), processor.patcher, processor.banned) if copied else None
    policy = run.trainable("policy", VisionPolicy(lm, processor.patcher, processor.banned), kind.policy, steps)
    winners = [row(place, prompts[pair.prompt], pair.chosen) for place, pair in enumerate(made)]
    if isinstance(kind, MoreSft):
        rows = RowStream(gold_rows(cfg, prompts, processor) if gold else winners, kind.batch, cfg.seed)
        supervised.train(
            run, policy=policy, rows=rows.take, steps=steps, layout=cfg.layout, evaluate=partial(select, policy)
        )
        return policy
    losers = [row(place, prompts[pair.prompt], pair.rejected) for place, pair in enumerate(made)]
    pairs = [Pair(place, *both) for place, both in enumerate(zip(winners, losers, strict=True))]
    return fit_pairs(run, kind, policy, pairs, None if beside is None else run.frozen(beside), select)


def fit_pairs(
    run: Run[Config], kind: Dpo, policy: Trainable, pairs: list[Pair], beside: nn.Module | None, select: Select
) -> Trainable:
    """DPO; ``beside`` is the frozen start model, where it is kept beside the policy."""
    layout = run.config.layout
    reference: Callable[[PairMicroBatch], PairScores] | None = None
    if kind.loss.needs_reference and kind.reference == "cached":
        pairs, reference = cached(run, policy, pairs, layout, run.dir / "reference.json"), cached_scores
    elif kind.loss.needs_reference:
        reference = partial(scores_of_start, policy, beside)
    stream = RowStream(pairs, kind.batch, run.config.seed)
    preference.train(
        run,
        policy=policy,
        minibatch=lambda step: pair_minibatch(run, stream.take(step), layout),
        loss=lambda batch: preference.token_loss(kind.loss, batch, reference),
        steps=kind.updates(len(pairs)),
        evaluate=partial(select, policy),
    )
    return policy


@torch.no_grad()
def scores_of_start(policy: Trainable, beside: nn.Module | None, micro: PairMicroBatch) -> PairScores:
    """Log-probabilities by the start model: by a frozen copy, or by the policy without its adapters."""
    if beside is not None:
        return micro.scores(beside(**micro.tokens.inputs())[0])
    with without_adapters(policy.unwrapped):
        return micro.scores(policy.module(**micro.tokens.inputs())[0])


def fit_grpo(
    run: Run[Config],
    lm: PreTrainedModel,
    processor: Processor,
    generator: Generator,
    prompts: PromptSplits,
    select: Select,
) -> tuple[Run[Any], Trainable]:
    """GRPO on the score, as a stage of its own in runs/<name>/grpo."""
    cfg = run.config
    inner: Run[Any] = Run(cfg.grpo, folder=run.dir / "grpo")
    models = roles(inner, cfg.grpo, lm, lambda lm: VisionPolicy(lm, processor.patcher, processor.banned))
    ppo.train(
        inner,
        roles=models,
        generator=generator,
        prompts=PromptStream(prompts.train, cfg.seed),
        reward=make_metric(cfg),
        evaluate=partial(select, models.actor),
    )
    return inner, models.actor
