"""PPO, in verbs. GRPO, RLOO, REINFORCE++ and ReMax are this same loop without the critic.

prompts --generate--> groups --score--> batch --annotate--> values, logprobs --credit--> advantages
   ^  ^                         |                                                           |
   |  +-- dynamic sampling: groups without signal                                           |
   +---- generator.load(weights) <---- actor.update <---- critic.update <-------------------+

``learn`` (rl/update.py) is what lies between a batch and new weights, the same for loops/stream.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stepstack.batching.leaks import refuse_leaks
from stepstack.core.run import Run
from stepstack.generation.types import Generator, rollout_seed
from stepstack.rl.experience import Scored, collect, score_all, with_signal
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
        sampling = cfg.rollout.sampling.replace(seed=rollout_seed(cfg.seed, step, 0))
        scored, greedy = list[Scored](), list[Scored]()
        for batch_prompts in prompts.batches(step, cfg.rollout.prompts, cfg.rollout.max_batches):
            local_prompts = batch_prompts[run.rank :: run.processes]
            with run.timer("rollout"):
                groups = list(generator.generate(local_prompts, sampling))
                greedy_groups = list(generator.generate(local_prompts, sampling.greedy)) if cfg.uses_greedy else []
            with run.timer("reward"):
                scored += score_all(run, groups, reward)
                greedy += score_all(run, greedy_groups, reward)
            if len(with_signal(scored)) >= cfg.rollout.prompts:
                break
        with run.timer("rollout"):
            generator.sleep()
        batch, metrics = collect(run, cfg, scored, seed=step, greedy=greedy)
        run.log(**metrics)
        learn(run, cfg, roles, batch)
        with run.timer("sync"):
            generator.load(actor.named_weights(), version=step + 1)
