"""The stages of an M-DocSum run: instruction tuning, DPO, and what stands beside DPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from recipes.mdocsum.config import Config, Dpo, MoreSft, Sft
from recipes.mdocsum.data import lesson_rows, load_prompts
from recipes.mdocsum.model import load_model, placed_at
from recipes.mdocsum.pairs import gold_rows, load_pairs, row
from recipes.mdocsum.reward import make_metric
from stepstack.batching.pairs import Pair, pair_minibatch
from stepstack.batching.pipelined import trainable_of
from stepstack.batching.reference import start_copy, with_reference
from stepstack.batching.stream import RowStream
from stepstack.core.run import Run, stage
from stepstack.core.trainable import Trainable
from stepstack.generation.types import Generator, Prompt
from stepstack.loops import ppo, preference, supervised
from stepstack.models.vision.config import PretrainedVl
from stepstack.models.vision.policy import VisionPolicy
from stepstack.models.vision.processor import Processor
from stepstack.rl.prompts import PromptSplits, PromptStream
from stepstack.rl.roles import roles

Begin = Callable[[Trainable], None]  # the sampler gets the start model's weights, and it is evaluated
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
    begin: Begin = lambda policy: None,
    select: Select | None = None,
) -> Trainable:
    """Instruction tuning on the training papers."""
    papers = [prompt.problem.meta["document"] for prompt in prompts.train]
    steps = kind.updates(len(papers))
    rows = lesson_rows(run.config, kind, papers, processor, steps)
    vision = VisionPolicy(lm, processor.patcher, processor.banned)
    policy = trainable_of(run, "policy", vision, kind.policy, steps, kind.pipeline, rows, run.config.layout)
    begin(policy)
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
    begin: Begin,
    select: Select,
) -> Trainable:
    """DPO on pairs, or SFT on their winners or on gold answers of the same papers."""
    cfg, prompts = run.config, prompts[: run.config.pairs.papers]
    gold = isinstance(kind, MoreSft) and kind.answers == "gold"
    module = VisionPolicy(lm, processor.patcher, processor.banned)
    start = start_copy(run, module, kind) if isinstance(kind, Dpo) else None
    policy = run.trainable("policy", module, kind.policy, total_updates=1)
    begin(policy)
    preferred = [] if gold else load_pairs(run, prompts, generator, processor)
    generator.sleep()
    # Known only now: pairs are sampled by the policy.
    steps = policy.total_updates = kind.updates(len(prompts) if gold else len(preferred))
    evaluate = partial(select, policy)
    winners = [row(place, prompts[pair.prompt], pair.chosen) for place, pair in enumerate(preferred)]
    if isinstance(kind, MoreSft):
        rows = RowStream(gold_rows(cfg, prompts, processor) if gold else winners, kind.batch, cfg.seed)
        supervised.train(run, policy=policy, rows=rows.take, steps=steps, layout=cfg.layout, evaluate=evaluate)
        return policy
    losers = [row(place, prompts[pair.prompt], pair.rejected) for place, pair in enumerate(preferred)]
    pairs = [Pair(place, *both) for place, both in enumerate(zip(winners, losers, strict=True))]
    pairs, reference = with_reference(run, policy, pairs, kind, cfg.layout, start)
    stream = RowStream(pairs, kind.batch, cfg.seed)
    preference.train(
        run,
        policy=policy,
        minibatch=lambda step: pair_minibatch(run, stream.take(step), cfg.layout),
        loss=lambda batch: preference.token_loss(kind.loss, batch, reference),
        steps=steps,
        evaluate=evaluate,
    )
    return policy


def fit_grpo(
    run: Run[Config],
    lm: PreTrainedModel,
    processor: Processor,
    generator: Generator,
    prompts: PromptSplits,
    begin: Begin,
    select: Select,
) -> tuple[Run[Any], Trainable]:
    """GRPO on the score, as a stage of its own in runs/<name>/grpo."""
    cfg = run.config
    inner: Run[Any] = Run(cfg.grpo, folder=run.dir / "grpo", live=run.live)
    models = roles(inner, cfg.grpo, lm, lambda lm: VisionPolicy(lm, processor.patcher, processor.banned))
    ppo.train(
        inner,
        roles=models,
        generator=generator,
        prompts=PromptStream(prompts.train, cfg.seed),
        reward=make_metric(cfg),
        evaluate=partial(select, models.actor),
        before=lambda: begin(models.actor),
    )
    inner.finish()
    return inner, models.actor
