"""How rows become micro-batches. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from stepstack.config import Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLayout(Strict):
    """How rows become micro-batches of at most ``max_tokens`` tokens, padding counted.

    ``orz_parity``: packs filled in arrival order and trailing packs dropped, as ORZ's code does.
    """

    pack: bool = False
    max_tokens: int = 8192
    orz_parity: bool = False
