"""A quick score of a generator on prompts while it trains: in memory, nothing is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from stepstack.core.types import ProcessGroup
from stepstack.generation.types import Generator, Prompt, Sampling
from stepstack.harness.metrics import clustered
from stepstack.rl.experience import Scored
from stepstack.rl.reward import Reward


@dataclass(frozen=True, slots=True)
class Validation:
    """``accuracy`` is the mean reward over questions of the mean over samples (avg@k); ``stderr`` is clustered by
    question, None where all questions score alike. ``scored`` holds every sample, ordered by (question, sample)."""

    accuracy: float
    stderr: float | None
    n: int
    k: int
    length: float
    truncated: float
    scored: list[Scored]

    def metrics(self, prefix: str) -> dict[str, float]:
        values = {"accuracy": self.accuracy, "length": self.length, "truncated": self.truncated}
        values |= {} if self.stderr is None else {"stderr": self.stderr}
        return {f"{prefix}/{name}": value for name, value in values.items()}


def validate(
    generator: Generator,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    reward: Reward,
    world: ProcessGroup,
) -> Validation:
    """Each process samples its share; all get the whole result, the same for any number of processes."""
    if not prompts:
        raise ValueError(
            "nothing to evaluate: the set is empty, or every prompt in it was dropped as too long: raise "
            "prompt.max_tokens"
        )
    groups = list(generator.generate(list(prompts)[world.rank :: world.processes], sampling))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scored: list[Scored] = world.gather(list(zip(rollouts, reward(rollouts), strict=True)))
    scored.sort(key=lambda pair: (pair[0].problem.index, pair[0].sample))
    by_question: dict[int, list[float]] = {}
    for rollout, score in scored:
        by_question.setdefault(rollout.problem.index, []).append(score.value)
    figure = clustered([fmean(values) for values in by_question.values()])
    return Validation(
        accuracy=figure.value,
        stderr=figure.stderr,
        n=figure.n,
        k=sampling.n,
        length=fmean(len(rollout.ids) for rollout, _ in scored),
        truncated=fmean(rollout.finish == "length" for rollout, _ in scored),
        scored=scored,
    )
