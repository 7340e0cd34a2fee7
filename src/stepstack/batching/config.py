"""How rows become micro-batches. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt

from stepstack.config import Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLayout(Strict):
    """How rows become micro-batches."""

    pack: bool = False
    """Whether rows are packed one behind the other into one sequence, instead of padded to the longest."""
    max_tokens: PositiveInt = 8192
    """Most tokens of a micro-batch, padding counted."""
    orz_parity: bool = False
    """Whether packs are filled in arrival order and trailing packs dropped, as ORZ's code does; needs ``pack``."""
