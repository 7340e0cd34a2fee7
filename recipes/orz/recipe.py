"""Open-Reasoner-Zero (arXiv 2503.24290): PPO on a base model with a 0/1 rule reward, nothing else."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from recipes.orz.base import TinyBase
from recipes.orz.chains import Chains
from recipes.orz.data import Prepared, ReasoningGym, load_prompts, prepare
from recipes.orz.models import Pretrained, SmolLm2, load_model, make_generator, open_engine, params_of
from recipes.orz.outcome import write_report
from recipes.orz.prompt import PromptConfig
from recipes.orz.reward import RewardConfig, make_reward
from recipes.orz.tasks import own
from stepstack.config import Scale
from stepstack.core.run import Run
from stepstack.harness.engine import engine_of
from stepstack.harness.outcome import measure, report_outcome
from stepstack.harness.validation import validate
from stepstack.loops import ppo
from stepstack.models.policy import Policy
from stepstack.models.value import Value
from stepstack.rl.prompts import Prompts

__all__ = ["Config", "describe", "open_engine", "own", "prepare", "train", "write_report"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ppo.PpoConfig):
    """What ORZ adds to PPO: a model, problems, a prompt and a grader."""

    model: Annotated[TinyBase | Pretrained | SmolLm2, Field(discriminator="type")]
    data: Annotated[Chains | Prepared | ReasoningGym, Field(discriminator="type")]
    prompt: PromptConfig = PromptConfig()
    reward: RewardConfig = RewardConfig()

    def __post_init__(self) -> None:
        ppo.PpoConfig.__post_init__(self)
        if self.kl.weight > 0 and self.kl.place == "reward" and not self.uses_critic:
            raise ValueError(
                "kl.place=reward is a penalty token by token, which needs advantage.type=gae: use kl.place=loss"
            )
        sampling = self.rollout.sampling
        longest = min(self.prompt.max_tokens + sampling.max_tokens, sampling.max_length or 1 << 60)
        if self.layout.max_tokens < longest:
            raise ValueError(
                f"a rollout may have {longest} tokens (prompt.max_tokens + rollout.sampling.max_tokens, at most "
                f"rollout.sampling.max_length), which layout.max_tokens={self.layout.max_tokens} does not hold"
            )

    @property
    def scale(self) -> Scale:
        """The policy's parameters; tokens at most: every response as long as it may be."""
        return Scale(params_of(self.model), self.steps * self.rollouts_per_step * self.rollout.sampling.max_tokens)


def train(run: Run[Config]) -> None:
    """The whole recipe: compose the parts, call one loop, show what was learned."""
    cfg = run.config
    lm, tokenizer, source = load_model(run)
    prompts = load_prompts(cfg, tokenizer)
    training = Prompts(prompts.train, cfg.seed)
    run.reseed()
    reward = make_reward(cfg.reward)

    critic_lm = copy.deepcopy(lm) if cfg.uses_critic else None
    reference_lm = copy.deepcopy(lm) if cfg.kl.weight > 0 else None
    generator = make_generator(cfg, lm, tokenizer, source, run.device)
    actor = run.trainable("actor", Policy(lm), cfg.actor, cfg.steps * cfg.actor_updates)
    critic = None
    if critic_lm is not None:
        critic = run.trainable("critic", Value(critic_lm), cfg.critic, cfg.steps * cfg.critic_updates)
    reference = None if reference_lm is None else run.frozen(Policy(reference_lm))

    engine = engine_of(cfg.rollout.generator, generator, tokenizer)

    def select() -> dict[str, float]:
        sampling = cfg.rollout.sampling.but(n=1, seed=cfg.seed + 1)
        return validate(generator, prompts.select, sampling, reward, run).metrics("eval")

    generator.load(actor.named_weights(), version=run.resume())
    if run.step == 0:
        measure(run, "before", engine, source, own(cfg))
    ppo.train(
        run,
        actor=actor,
        critic=critic,
        reference=reference,
        generator=generator,
        prompts=training,
        reward=reward,
        evaluate=select,
    )
    measure(run, "after", engine, str(run.export("actor", run.dir / "model", tokenizer)), own(cfg))
    report_outcome(run, write_report)
    run.finish()


def describe(cfg: Config) -> dict[str, Any]:
    """What a run of this config would do, for ``--dry-run``: the numbers that follow from the config's."""
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
        "longest response": f"{sampling.max_tokens} tokens; with its prompt {sampling.max_length or 'the model limit'}",
        "micro-batch": f"up to {cfg.layout.max_tokens} tokens, {'packed' if cfg.layout.pack else 'padded'}",
        "processes": f"{cfg.launch.processes} = {cfg.launch.nodes} nodes x {cfg.launch.processes_per_node}",
        "folder": Run.folder(cfg),
    }
