"""PPO, in verbs. GRPO, RLOO and Dr. GRPO are this same loop without the critic.

prompts --generate--> groups --score--> batch --annotate--> values, logprobs --credit--> advantages
   ^                                                                                        |
   +---- generator.load(weights) <---- actor.update <---- critic.update <-------------------+

``learn`` (rl/update.py) is what lies between a batch and new weights, the same for loops/stream.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stepstack.batching.leaks import refuse_leaks
from stepstack.core.run import Run
from stepstack.generation.types import Generator, rollout_seed
from stepstack.rl.experience import collect
from stepstack.rl.prompts import PromptStream
from stepstack.rl.reward import Reward
from stepstack.rl.roles import Roles
from stepstack.rl.update import learn


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
    cfg, actor = run.config, roles.actor
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
            greedy = list(generator.generate(local_prompts, sampling.greedy)) if cfg.uses_greedy else []
            generator.sleep()
        with run.timer("reward"):
            batch, metrics = collect(run, cfg, groups, reward, seed=step, greedy=greedy)
            run.log(**metrics)
        learn(run, cfg, roles, batch)
        with run.timer("sync"):
            generator.load(actor.named_weights(), version=step + 1)
