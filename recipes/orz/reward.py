"""Open-Reasoner-Zero's reward: 1 for a correct, finished answer, else 0. No format reward, no length penalty."""

from __future__ import annotations

import re
from collections.abc import Sequence

from recipes.orz.config import Config, Extract, Grader, RewardConfig
from stepstack.generation.types import Answer
from stepstack.harness.config import TaskData
from stepstack.harness.training.task_data import load_task
from stepstack.records import Score, gold_text
from stepstack.rl.config import FileReward, ModelReward
from stepstack.rl.reward import Reward, load_reward
from stepstack.scoring.maths.boxed import extract_orz, last_box, last_number
from stepstack.scoring.maths.pool import GraderPool

# What ORZ counts as reflection (its logged "reflection pattern score"), case included.
REFLECTION = re.compile(r"wait,|recheck[,\s]|retry|alternatively,|however,")


def make_reward(cfg: RewardConfig) -> MathReward:
    """The rule of the recipe."""
    return MathReward(GraderPool(cfg.workers, cfg.timeout), grader=cfg.grader, extract=cfg.extract)


def reward_of(cfg: Config) -> Reward:
    """The reward of a run: that of the file or the model which the config names, else that of the task file whose rows
    are trained on, else the rule of the recipe."""
    if isinstance(cfg.reward, FileReward):
        return load_reward(cfg.reward)
    if isinstance(cfg.reward, ModelReward):
        import torch  # which no other reward needs

        from stepstack.rl.reward_model import load_reward_model

        on_gpu = torch.cuda.is_available() and not cfg.launch.file.startswith("cpu")
        return load_reward_model(cfg.reward, "cuda" if on_gpu else "cpu")
    return load_task(cfg.data).score if isinstance(cfg.data, TaskData) else make_reward(cfg.reward)


class MathReward:
    """Scores rollouts: 1.0 iff the answer is correct and ``finish`` is "stop"; a truncated response never earns it.

    Parts: ``correct`` (whether or not finished), ``finished``, ``boxed`` (an answer was found), ``timeout``,
    ``grader_error`` (each 0 or 1) and ``reflections`` (a count). ``grader`` orz_legacy reads and grades answers as
    ORZ's code does (``extract_orz(parity=True)``, ``orz_legacy``); otherwise ``grader``, and ``choice`` for problems
    with choices. ``extract`` says where in a response the answer is looked for.
    """

    def __init__(self, pool: GraderPool, *, grader: Grader = "math_verify", extract: Extract = "orz"):
        self.pool = pool
        self.name, self.place = grader, extract
        self.parity = grader == "orz_legacy"

    def __call__(self, rollouts: Sequence[Answer]) -> list[Score]:
        """One Score a rollout, in order. Raises ValueError for a problem without a gold answer."""
        extracted = [self.extract(rollout.text) for rollout in rollouts]
        items = [
            (self.grader(rollout), gold_text(rollout.problem.gold), answer)
            for rollout, answer in zip(rollouts, extracted, strict=True)
        ]
        scores = []
        for rollout, answer, grade in zip(rollouts, extracted, self.pool.map(items), strict=True):
            finished = rollout.finish == "stop"
            parts = {
                "correct": float(grade.correct),
                "finished": float(finished),
                "boxed": float(answer is not None),
                "timeout": float(grade.reason == "timeout"),
                "grader_error": float(grade.reason.startswith("error")),
                "reflections": float(len(REFLECTION.findall(rollout.text))),
            }
            failure = grade.reason if grade.reason == "timeout" or grade.reason.startswith("error") else None
            scores.append(Score(float(grade.correct and finished), parts, answer, failure))
        return scores

    def extract(self, text: str) -> str | None:
        """The answer of a response; None when there is none."""
        match self.place:
            case "orz":
                return extract_orz(text, parity=self.parity)
            case "boxed":
                return last_box(text)
            case "number":
                return last_number(text)

    def grader(self, rollout: Answer) -> str:
        """The grader's name for a rollout: log it with the result, since verdicts depend on it."""
        if self.parity:
            return "orz_legacy"
        return "choice" if "choices" in rollout.problem.meta else self.name
