"""Perception-R1 (arXiv 2504.07954): GRPO that makes a vision-language model see better, by rules one can check."""

from __future__ import annotations

from functools import partial
from typing import Any

from recipes.perception.config import BoxFileReward, Config, weights_of
from recipes.perception.data import load_prompts, prepare
from recipes.perception.model import load_model, open_engine, open_sampler, prompt_builder, skeleton
from recipes.perception.report import keep_report, write_report
from recipes.perception.reward import make_metric, reward_of
from recipes.perception.tasks import tasks
from stepstack.core.run import Run
from stepstack.generation.build import build_generator
from stepstack.harness.config import TaskData
from stepstack.harness.engines.generator import engine_of
from stepstack.harness.training.outcome import measure, report_outcome
from stepstack.harness.training.validation import validate
from stepstack.loops import ppo, stream
from stepstack.models.vision.policy import VisionPolicy
from stepstack.rl.prompts import PromptStream
from stepstack.rl.roles import roles

__all__ = ["Config", "describe", "open_engine", "open_sampler", "prepare", "skeleton", "tasks", "train", "write_report"]


def train(run: Run[Config]) -> None:
    """The whole recipe: compose the parts, call one loop, show what was learned."""
    cfg = run.config
    keep_report(run)
    lm, processor, source = load_model(run)
    prompts = load_prompts(cfg, processor)
    run.reseed()
    tokenizer = processor.tokenizer
    generator = build_generator(cfg.rollout.generator, lm, tokenizer, source, run.device, processor)
    engine = engine_of(cfg.rollout.generator, generator, tokenizer, prompt=prompt_builder(cfg, processor))
    models = roles(run, cfg, lm, lambda lm: VisionPolicy(lm, processor.patcher, processor.banned))
    metric = make_metric(cfg)

    def select() -> dict[str, float]:
        greedy = cfg.rollout.sampling.replace(n=1, temperature=0.0)
        return validate(generator, prompts.select, greedy, metric, run).metrics("eval")

    loop = ppo.train if cfg.stream is None else partial(stream.train, source=source)
    loop(
        run,
        roles=models,
        generator=generator,
        prompts=PromptStream(prompts.train, cfg.seed),
        reward=reward_of(cfg),
        evaluate=select,
        before=lambda: measure(run, "before", engine, source, tasks(cfg)),
    )
    folder = run.export("actor", run.dir / "model", processor)
    generator.load(models.actor.finished_weights(), version=run.step)
    measure(run, "after", engine, str(folder), tasks(cfg))
    report_outcome(run)
    run.finish()


def reward_in_words(cfg: Config) -> str:
    """Weights and parts of the rule, or the file that takes its place."""
    if isinstance(cfg.reward, BoxFileReward):
        return f"{cfg.reward.function} of {cfg.reward.path}"
    if isinstance(cfg.data, TaskData):
        return f"the score of {cfg.data.path}"
    return " + ".join(f"{weight:g} {part}" for part, weight in weights_of(cfg.task, cfg.reward).items())


def describe(cfg: Config) -> dict[str, Any]:
    """Numbers that follow from those of a config, for ``--dry-run``."""
    sampling = cfg.rollout.sampling
    return {
        "task": cfg.task,
        "reward": reward_in_words(cfg),
        "boxes": f"as {cfg.reward.form}, in {cfg.reward.space}",
        "rollouts per step": f"{cfg.rollouts_per_step} = {cfg.rollout.prompts} prompts x {sampling.n} samples",
        "rollouts in all": f"{cfg.rollouts_per_step * cfg.steps} in {cfg.steps} steps",
        "actor updates": f"{cfg.actor_updates} a step",
        "reference model": "loaded" if cfg.kl.weight > 0 else "not loaded (kl.weight is 0)",
        "rollouts from": cfg.rollout.generator.type,
        "processes": f"{cfg.launch.processes} = {cfg.launch.nodes} nodes x {cfg.launch.processes_per_node}",
        "folder": cfg.folder,
    }
