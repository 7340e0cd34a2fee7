"""Perception-R1 (arXiv 2504.07954): GRPO that makes a vision-language model see better, by rules one can check."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from data.pictures import Task
from data.scenes import Objects, Words
from recipes.perception.base import TinyVl
from recipes.perception.data import Prepared, load_prompts, prepare
from recipes.perception.models import PretrainedVl, asking, load_model, make_generator, open_engine
from recipes.perception.outcome import write_report
from recipes.perception.prompt import PromptConfig
from recipes.perception.reward import RewardConfig, make_judge, make_reward, weights_of
from recipes.perception.tasks import own
from stepstack.core.run import Run
from stepstack.harness.engine import engine_of
from stepstack.harness.outcome import measure, report_outcome
from stepstack.harness.validation import validate
from stepstack.loops import ppo
from stepstack.models.vision import VisionPolicy
from stepstack.rl.prompts import Prompts

__all__ = ["Config", "describe", "open_engine", "own", "prepare", "train", "write_report"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ppo.PpoConfig):
    """What Perception-R1 adds to GRPO: a task, a model with eyes, pictures, a prompt and a rule."""

    task: Task
    model: Annotated[TinyVl | PretrainedVl, Field(discriminator="type")]
    data: Annotated[Objects | Words | Prepared, Field(discriminator="type")]
    prompt: PromptConfig = PromptConfig()
    reward: RewardConfig = RewardConfig()

    def __post_init__(self) -> None:
        ppo.PpoConfig.__post_init__(self)
        weights_of(self.task, self.reward)
        if self.uses_critic:
            raise ValueError("perception has no critic: set advantage.type to grpo or rloo")
        if self.layout.pack:
            raise ValueError("rows with pictures are not packed: set layout.pack=false")


def train(run: Run[Config]) -> None:
    """The whole recipe: compose the parts, call one loop, show what was learned."""
    cfg = run.config
    lm, kit, source = load_model(run)
    prompts = load_prompts(cfg, kit)
    run.reseed()
    reference_lm = copy.deepcopy(lm) if cfg.kl.weight > 0 else None
    generator = make_generator(cfg, lm, kit, source, run.device)
    actor = run.trainable("actor", VisionPolicy(lm, kit.reader, kit.banned), cfg.actor, cfg.steps * cfg.actor_updates)
    reference = None if reference_lm is None else run.frozen(VisionPolicy(reference_lm, kit.reader, kit.banned))
    judge = make_judge(cfg)
    engine = engine_of(cfg.rollout.generator, generator, kit.tokenizer, prompt=asking(cfg, kit))

    def select() -> dict[str, float]:
        greedy = cfg.rollout.sampling.but(n=1, temperature=0.0)
        return validate(generator, prompts.select, greedy, judge, run).metrics("eval")

    generator.load(actor.named_weights(), version=run.resume())
    if run.step == 0:
        measure(run, "before", engine, source, own(cfg))
    ppo.train(
        run,
        actor=actor,
        critic=None,
        reference=reference,
        generator=generator,
        prompts=Prompts(prompts.train, cfg.seed),
        reward=make_reward(cfg),
        evaluate=select,
    )
    measure(run, "after", engine, str(run.export("actor", run.dir / "model", kit)), own(cfg))
    report_outcome(run, write_report)
    run.finish()


def describe(cfg: Config) -> dict[str, Any]:
    """What a run of this config would do, for ``--dry-run``."""
    sampling = cfg.rollout.sampling
    return {
        "task": cfg.task,
        "reward": " + ".join(f"{weight:g} {part}" for part, weight in weights_of(cfg.task, cfg.reward).items()),
        "boxes": f"as {cfg.reward.form}, in {cfg.reward.space}",
        "rollouts per step": f"{cfg.rollouts_per_step} = {cfg.rollout.prompts} prompts x {sampling.n} samples",
        "rollouts in all": f"{cfg.rollouts_per_step * cfg.steps} in {cfg.steps} steps",
        "actor updates": f"{cfg.actor_updates} a step",
        "reference model": "loaded" if cfg.kl.weight > 0 else "not loaded (kl.weight is 0)",
        "rollouts from": cfg.rollout.generator.type,
        "processes": f"{cfg.launch.processes} = {cfg.launch.nodes} nodes x {cfg.launch.processes_per_node}",
        "folder": Run.folder(cfg),
    }
