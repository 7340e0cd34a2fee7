"""PPO, in verbs. GRPO, RLOO and Dr. GRPO are this same loop without the critic.

prompts --generate--> groups --score--> batch --annotate--> values, logprobs --credit--> advantages
   ^                                                                                        |
   +---- generator.load(weights) <---- actor.update <---- critic.update <-------------------+
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stepstack.batching.leaks import refuse_leaks
from stepstack.batching.minibatch import minibatches
from stepstack.core.run import Run
from stepstack.generation.types import Generator, rollout_seed
from stepstack.rl.experience import collect
from stepstack.rl.prompts import PromptStream
from stepstack.rl.reward import Reward
from stepstack.rl.roles import Roles
from stepstack.rl.update import annotate, credit, update_actor, update_critic


def train(
    run: Run[Any],
    *,
    roles: Roles,
    generator: Generator,
    prompts: PromptStream,
    reward: Reward,
    evaluate: Callable[[], Mapping[str, float]],
    before: Callable[[], None] | None = None,
) -> None:
    """Every rollout of a step is sampled by the policy that the step then updates: on-policy. ``before`` is called
    once, when the generator has the weights that a new run begins with."""
    cfg, (actor, critic) = run.config, (roles.actor, roles.critic)
    run.refuse_dropout("would make log-probabilities and values of training and rollout differ")
    generator.load(actor.named_weights(), version=run.resume())
    refuse_leaks(run, actor, cfg.layout)
    if before is not None and run.step == 0:
        before()
    for step in run.steps(cfg.steps, evaluate):
        with run.timer("rollout"):
            local_prompts = prompts.take(step, cfg.rollout.prompts)[run.rank :: run.processes]
            sampling = cfg.rollout.sampling.replace(seed=rollout_seed(cfg.seed, step, 0))
            groups = list(generator.generate(local_prompts, sampling))
            generator.sleep()
        with run.timer("reward"):
            chunks = cfg.critic_updates if critic else cfg.actor_updates
            batch, metrics = collect(run, groups, reward, seed=step, chunks=chunks)
            run.log(**metrics)
        for_critic = minibatches(run, batch, cfg.critic_updates, cfg.layout) if critic else []
        for_actor = minibatches(run, batch, cfg.actor_updates, cfg.layout)
        with run.timer("annotate"):
            annotate(run, cfg, roles, for_actor, for_critic)
        credit(run, batch, cfg)
        if critic:
            with run.timer("critic"):
                for minibatch in for_critic:
                    run.log(**update_critic(critic, minibatch, cfg))
        with run.timer("actor"):
            for minibatch in for_actor:
                run.log(**update_actor(actor, minibatch, cfg))
        with run.timer("sync"):
            generator.load(actor.named_weights(), version=step + 1)
