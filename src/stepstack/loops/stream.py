"""PPO on rollouts of worker processes: the verbs of loops/ppo.py, with generation beside training.

publish --weights--> workers --units of groups--> score --> annotate --> credit --> update
   ^                                                                                |
   +--------------------------------------------------------------------------------+

With staleness 1 the workers sample step t + 1 by the weights that step t began with, while step t is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stepstack.batching.leaks import refuse_leaks
from stepstack.core.run import Run
from stepstack.generation.types import Generator, Group
from stepstack.rl.experience import Scored, collect, score_all, shared_out, summary
from stepstack.rl.loss import denominator
from stepstack.rl.prompts import PromptStream
from stepstack.rl.reward import Reward
from stepstack.rl.roles import Roles
from stepstack.rl.streaming import StreamedRollouts
from stepstack.rl.update import credit, learn, policy_loss, prepare, value_loss


def train(
    run: Run[Any],
    *,
    roles: Roles,
    generator: Generator,
    prompts: PromptStream,
    reward: Reward,
    evaluate: Callable[[], Mapping[str, float]],
    before: Callable[[], None] | None = None,
    source: str,
) -> None:
    """Train as loops/ppo.py does, with ``stream.staleness=0, consume=batch`` to the same bits. ``generator`` is that of
    this process, for evaluations; ``source`` the folder of the model, from which workers know its shape."""
    cfg, actor = run.config, roles.actor
    run.refuse_dropout("would make log-probabilities and values of training and rollout differ")

    def evaluate_newest() -> Mapping[str, float]:
        generator.load(actor.named_weights(), version=run.step)
        figures = evaluate()
        generator.sleep()
        return figures

    with StreamedRollouts(run, cfg, cfg.stream, prompts, source) as rollouts:
        generator.load(actor.named_weights(), version=run.resume())
        refuse_leaks(run, actor, cfg.layout)
        if before is not None and run.step == 0:
            before()
        for step in run.steps(cfg.steps, evaluate_newest):
            with run.timer("sync"):
                rollouts.publish(step, actor.named_weights())
            match cfg.stream.consume:
                case "batch":
                    train_on_batch(run, roles, rollouts, reward, step)
                case "stream":
                    train_on_arrival(run, roles, rollouts, rollouts.units(step), reward, step)
                case "groups":
                    train_on_arrival(run, roles, rollouts, rollouts.groups(step), reward, step)
            rollouts.trained(step)


def train_on_batch(run: Run[Any], roles: Roles, rollouts: StreamedRollouts, reward: Reward, step: int) -> None:
    """Wait for all groups of a step, then update as PPO does."""
    began = time.time()
    with run.timer("rollout"):
        groups = [group for unit in rollouts.units(step) for group in unit]
    rollouts.record("wait", step, began)
    began = time.time()
    with run.timer("reward"):
        batch, metrics = collect(run, run.config, score_all(run, groups, reward), seed=step)
        run.log(**metrics)
    learn(run, run.config, roles, batch)
    rollouts.record("train", step, began)


def train_on_arrival(
    run: Run[Any],
    roles: Roles,
    rollouts: StreamedRollouts,
    portions: Iterator[list[Group]],
    reward: Reward,
    step: int,
) -> None:
    """Sum up the gradients of each portion of the step's groups as it comes; update once at the end."""
    cfg, (actor, critic) = run.config, (roles.actor, roles.critic)
    scored: list[Scored] = []
    counts = {"tokens": 0.0, "rows": 0.0, "packs": 0.0}
    learned = 0.0
    waiting = time.time()
    for groups in _timed(run, portions):
        rollouts.record("wait", step, waiting)
        began = time.time()
        with run.timer("reward"):
            new = score_all(run, groups, reward)
            batch = shared_out(run, cfg, new, seed=step)
            scored += new
        [for_actor], for_critic = prepare(run, cfg, roles, batch)
        with run.timer("gradient"):
            if critic:
                critic.accumulate(for_critic[0].micros, value_loss(cfg))
                credit(run, batch, cfg)
            actor.accumulate(for_actor.micros, policy_loss(cfg))
        for name in counts:
            counts[name] += vars(for_actor)[name]
        learned += for_actor.learned
        rollouts.record("train", step, began)
        waiting = time.time()
    run.log(**summary(scored), trained_fraction=learned / len(scored))
    with run.timer("actor"):
        if critic:
            run.log(**critic.finish_update(denominator(cfg.value_loss.aggregate, **counts)))
        run.log(**actor.finish_update(denominator(cfg.policy_loss.aggregate, **counts)))


def _timed(run: Run[Any], portions: Iterator[list[Group]]) -> Iterator[list[Group]]:
    """Portions, the wait for each of which is counted as rollout."""
    while True:
        with run.timer("rollout"):
            groups = next(portions, None)
        if groups is None:
            return
        yield groups
