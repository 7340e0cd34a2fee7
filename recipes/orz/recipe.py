"""Open-Reasoner-Zero (arXiv 2503.24290): PPO on a base model with a 0/1 rule reward, nothing else."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from recipes.orz.base import TinyBase
from recipes.orz.chains import Chains
from recipes.orz.data import Prepared, ReasoningGym, load_prompts
from recipes.orz.models import Pretrained, SmolLm2, load_model
from recipes.orz.outcome import report_outcome, save_evaluation
from recipes.orz.prompt import PromptConfig
from recipes.orz.reward import RewardConfig, make_reward
from stepstack.core.run import Run
from stepstack.evaluate import Evaluation, evaluate
from stepstack.loops import ppo
from stepstack.models.policy import Policy
from stepstack.models.value import Value
from stepstack.rl.generate import HfConfig, HfGenerator
from stepstack.rl.prompts import Prompts
from stepstack.rl.types import Generator, Prompt
from stepstack.rl.vllm import VllmConfig, VllmGenerator, VllmServerConfig, VllmServerGenerator


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ppo.PpoConfig):
    """What ORZ adds to PPO: a model, problems, a prompt and a grader."""

    model: Annotated[TinyBase | Pretrained | SmolLm2, Field(discriminator="type")]
    data: Annotated[Chains | Prepared | ReasoningGym, Field(discriminator="type")]
    prompt: PromptConfig = PromptConfig()
    reward: RewardConfig = RewardConfig()


def train(run: Run[Config]) -> None:
    """The whole recipe: compose the parts, call one loop, show what was learned."""
    cfg = run.config
    lm, tokenizer = load_model(run, cfg)
    prompts = load_prompts(cfg, tokenizer)
    reward = make_reward(cfg.reward)

    critic_lm = copy.deepcopy(lm) if cfg.uses_critic else None
    reference = run.frozen(Policy(copy.deepcopy(lm))) if cfg.kl.weight > 0 else None
    actor = run.trainable("actor", Policy(lm), cfg.actor, cfg.steps * cfg.actor_updates)
    critic = critic_lm and run.trainable("critic", Value(critic_lm), cfg.critic, cfg.steps * cfg.critic_updates)
    generator = make_generator(run, cfg, lm, tokenizer)

    def score(split: list[Prompt], samples: int = 1) -> Evaluation:
        sampling = cfg.rollout.sampling.but(n=samples, seed=cfg.seed + 1)
        share = {"gather": run.gather, "rank": run.rank, "processes": run.processes}
        return evaluate(generator, split, sampling, reward, **share)

    run.resume()
    generator.load(actor.named_weights(), version=run.step)
    if run.step == 0:
        save_evaluation(run, "before", score(prompts.test))
    ppo.train(
        run,
        actor=actor,
        critic=critic,
        reference=reference,
        generator=generator,
        prompts=Prompts(prompts.train, cfg.seed),
        reward=reward,
        evaluate=lambda: score(prompts.select).metrics("eval"),
    )
    save_evaluation(run, "after", score(prompts.test))
    if cfg.save.export:
        run.export("actor", run.dir / "model", tokenizer)
    report_outcome(run)
    run.finish()


def make_generator(run: Run[Config], cfg: Config, lm, tokenizer) -> Generator:
    match cfg.rollout.generator:
        case HfConfig() as kind:
            return HfGenerator(lm, tokenizer, kind)
        case VllmConfig() as kind:
            return VllmGenerator(lm, tokenizer, kind)
        case VllmServerConfig() as kind:
            return VllmServerGenerator(tokenizer, kind)
