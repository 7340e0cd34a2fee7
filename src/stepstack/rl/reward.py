"""What a reward is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stepstack.records import Score

if TYPE_CHECKING:
    pass
from stepstack.generation.types import Rollout

# A reward scores a batch, so that a grader may work in parallel and be killed when it hangs. Pure: no state, no log.
Reward = Callable[[Sequence[Rollout]], list[Score]]
