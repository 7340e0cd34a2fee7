"""The stream of training prompts: a pure function of (seed, step), so that a resumed run needs no cursor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stepstack.rl.types import Prompt


class Prompts:
    """Endless epochs over ``prompts``, each in a permutation of its own."""

    def __init__(self, prompts: Sequence[Prompt], seed: int):
        if not prompts:
            raise ValueError("no training prompts: the prepared set is empty or every prompt was dropped")
        self.prompts, self.seed = prompts, seed
        self._orders: dict[int, list[int]] = {}

    def take(self, step: int, count: int) -> list[Prompt]:
        """The ``count`` prompts of a step; a step may cross into the next epoch."""
        places = range(step * count, (step + 1) * count)
        return [self.prompts[self._order(p // len(self.prompts))[p % len(self.prompts)]] for p in places]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = torch.randperm(len(self.prompts), generator=generator).tolist()
        return self._orders[epoch]
