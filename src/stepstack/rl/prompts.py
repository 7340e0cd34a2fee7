"""The stream of training prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepstack.generation.types import Prompt


@dataclass(frozen=True, slots=True)
class PromptSplits:
    """Prompts that are trained on, watched during training, and reported at the end."""

    train: list[Prompt]
    select: list[Prompt]
    test: list[Prompt]


class PromptStream:
    """The stream of training prompts: a pure function of (seed, step), so that a resumed run needs no cursor.

    Endless epochs over ``prompts``, each a permutation of its own cut into whole steps. What does not fill a step is
    left out of that epoch, so that no problem comes twice in a step (its two groups would be one)."""

    def __init__(self, prompts: Sequence[Prompt], seed: int):
        if not prompts:
            raise ValueError(
                "no training prompts: the prepared set is empty or every prompt was dropped: raise "
                "prompt.max_tokens, or prepare the data again"
            )
        self.prompts, self.seed = prompts, seed
        self._epoch, self._order = -1, list[int]()

    def batches(self, step: int, count: int, most: int) -> list[list[Prompt]]:
        """The prompts of a step in up to ``most`` batches of ``count``."""
        prompts = self.take(step, count * most)
        return [prompts[start : start + count] for start in range(0, len(prompts), count)]

    def take(self, step: int, count: int) -> list[Prompt]:
        """The ``count`` different prompts of a step."""
        if count > len(self.prompts):
            raise ValueError(
                f"a step may need {count} prompts (rollout.prompts, times rollout.dynamic_sampling.max_batches), but "
                f"there are only {len(self.prompts)} training prompts: lower it"
            )
        epoch, place = divmod(step, len(self.prompts) // count)
        if epoch != self._epoch:
            import torch  # here, because the menu of tasks needs this file and no torch

            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.prompts), generator=generator).tolist()
        return [self.prompts[i] for i in self._order[place * count : (place + 1) * count]]
