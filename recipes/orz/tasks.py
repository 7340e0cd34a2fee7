"""ORZ's benchmarks and sums as evaluation tasks: the paper's protocol in one place, and a config's own splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data.drawn import chains
from data.drawn.chains import Chains
from data.drawn.splits import SPLITS, Split
from recipes.orz.config import Config, Grader, RewardConfig
from recipes.orz.data import problems
from recipes.orz.prompt import STOP, render, request_of
from recipes.orz.reward import make_reward, reward_of
from stepstack.generation.types import Sampling
from stepstack.harness.config import TaskData
from stepstack.harness.task import Task
from stepstack.harness.training.task_data import load_task, split_tasks
from stepstack.records import Problem


def benchmark(name: str, rows: Callable[[Path], Sequence[Problem]], about: str, grader: Grader = "math_verify") -> Task:
    """The paper's protocol (arXiv 2503.24290, section 3): 16 samples at T=1, top_p 1, its prompt and stop strings, an
    answer that is correct and finished. ``orz_legacy`` grades as its released code does; letters go to ``choice``."""
    return Task(
        name=name,
        version=2,
        about=about,
        rows=rows,
        request=lambda problem: render(problem.text),
        score=make_reward(RewardConfig(grader=grader)),
        budget=Sampling(n=16, max_tokens=8000, stop=STOP),
    )


def sums(name: str, rows: Callable[[], Sequence[Problem]], about: str, max_tokens: int = 64) -> Task:
    """Chains of sums for orz-tiny: one sample a question, since there are many."""
    return Task(
        name=name,
        version=1,
        about=about,
        rows=lambda data: rows(),
        request=lambda problem: render(problem.text, "short"),
        score=make_reward(RewardConfig(grader="exact")),
        budget=Sampling(max_tokens=max_tokens, stop=STOP),
    )


def held_out(cfg: Chains) -> list[Problem]:
    return chains.problems(cfg, "test")


def tasks(cfg: Config) -> list[Task]:
    """The splits of a config's data: ``test`` is reported, ``select`` watched, ``train`` mined for what is hard."""
    if isinstance(cfg.data, TaskData):
        return split_tasks(cfg.data, load_task(cfg.data))

    def split(name: Split) -> Task:
        return Task(
            name=name,
            version=1,
            about=f"the {name} split of {cfg.name}'s data",
            rows=lambda data: problems(cfg.data)[name],
            request=lambda problem: request_of(problem, cfg.prompt),
            score=reward_of(cfg),
            budget=cfg.rollout.sampling.replace(n=1),
        )

    return [split(name) for name in SPLITS]
