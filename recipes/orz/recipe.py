"""Open-Reasoner-Zero (arXiv 2503.24290): PPO on a base model with a 0/1 rule reward, nothing else."""

from __future__ import annotations

from functools import partial
from typing import Any

from recipes.orz.config import Config
from recipes.orz.data import load_prompts, prepare
from recipes.orz.model import load_model, open_engine, open_sampler, skeleton
from recipes.orz.report import keep_report, write_report
from recipes.orz.reward import reward_of
from recipes.orz.tasks import tasks
from stepstack.core.run import Run
from stepstack.generation.build import build_generator
from stepstack.harness.engines.generator import engine_of
from stepstack.harness.training.outcome import measure, report_outcome
from stepstack.harness.training.validation import validate
from stepstack.loops import ppo, stream
from stepstack.rl.prompts import PromptStream
from stepstack.rl.roles import roles

__all__ = ["Config", "describe", "open_engine", "open_sampler", "prepare", "skeleton", "tasks", "train", "write_report"]


def train(run: Run[Config]) -> None:
    """The whole recipe: compose the parts, call one loop, show what was learned."""
    cfg = run.config
    keep_report(run)
    lm, tokenizer, source = load_model(run)
    prompts = load_prompts(cfg, tokenizer)
    run.reseed()
    reward = reward_of(cfg)
    generator = build_generator(cfg.rollout.generator, lm, tokenizer, source, run.device, tool=cfg.tool)
    engine = engine_of(cfg.rollout.generator, generator, tokenizer, tool=cfg.tool)
    models = roles(run, cfg, lm)

    def select() -> dict[str, float]:
        sampling = cfg.rollout.sampling.replace(n=1, seed=cfg.seed + 1)
        return validate(generator, prompts.select, sampling, reward, run).metrics("eval")

    loop = ppo.train if cfg.stream is None else partial(stream.train, source=source)
    loop(
        run,
        roles=models,
        generator=generator,
        prompts=PromptStream(prompts.train, cfg.seed),
        reward=reward,
        evaluate=select,
        before=lambda: measure(run, "before", engine, source, tasks(cfg)),
    )
    folder = run.export("actor", run.dir / "model", tokenizer)
    generator.load(models.actor.finished_weights(), version=run.step)
    measure(run, "after", engine, str(folder), tasks(cfg))
    report_outcome(run)
    run.finish()


def describe(cfg: Config) -> dict[str, Any]:
    """Numbers that follow from those of a config, for ``--dry-run``."""
    sampling, steps = cfg.rollout.sampling, cfg.steps
    facts: dict[str, Any] = {
        "rollouts per step": f"{cfg.rollouts_per_step} = {cfg.rollout.prompts} prompts x {sampling.n} samples",
        "rollouts in all": f"{cfg.rollouts_per_step * steps} in {steps} steps",
        "actor updates": f"{cfg.actor_updates} a step, {cfg.actor_updates * steps} in all",
        "actor warm-up ends in step": -(-cfg.actor.optim.schedule.warmup // cfg.actor_updates),
    }
    if cfg.uses_critic:
        facts["critic updates"] = f"{cfg.critic_updates} a step, {cfg.critic_updates * steps} in all"
        facts["critic warm-up ends in step"] = -(-cfg.critic.optim.schedule.warmup // cfg.critic_updates)
    return facts | {
        "trained roles": "actor, critic" if cfg.uses_critic else "actor",
        "reference model": "loaded" if cfg.kl.weight > 0 else "not loaded (kl.weight is 0)",
        "rollouts from": cfg.rollout.generator.type,
        "tool": "none" if cfg.tool is None else cfg.tool.type,
        "longest response": f"{sampling.max_tokens} tokens; with its prompt {sampling.max_length or 'the model limit'}",
        "micro-batch": f"up to {cfg.layout.max_tokens} tokens, {'packed' if cfg.layout.pack else 'padded'}",
        "processes": f"{cfg.launch.processes} = {cfg.launch.nodes} nodes x {cfg.launch.processes_per_node}",
        "folder": cfg.folder,
    }
