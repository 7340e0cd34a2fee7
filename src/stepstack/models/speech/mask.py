"""Which audio token may follow: the generator and the trainer leave everything else out of the distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepstack.models.speech.tokens import GROUP, TokenLayout

BEGIN, FULL = 0, GROUP  # states: no audio token yet; a whole group


class GroupMask:
    """Rule of a turn of audio: whole groups ``L L S S S``, at least one, then an end.

    A state is the number of tokens in the group that is being filled, from 0 (a turn begins) to 5 (a group is whole).
    It follows from the last three tokens alone, so it needs no memory of the sequence. Implements
    ``models.lm.policy.TokenMask``.
    """

    window = 3

    def __init__(self, layout: TokenLayout, ends: Sequence[int], vocab_size: int):
        """``ends``: ids that end a turn, none of them audio. ``vocab_size``: width of the logits.

        ValueError where the layout has ids beyond it.
        """
        if layout.vocab > vocab_size:
            raise ValueError(f"the layout has ids up to {layout.vocab - 1}, the model only {vocab_size}")
        self.layout = layout
        linguistic = torch.zeros(vocab_size, dtype=torch.bool)
        linguistic[layout.first : layout.first_semantic] = True
        semantic = torch.zeros(vocab_size, dtype=torch.bool)
        semantic[layout.first_semantic : layout.vocab] = True
        end = torch.zeros(vocab_size, dtype=torch.bool)
        end[list(ends)] = True
        allowed = [linguistic, linguistic, semantic, semantic, semantic, linguistic | end]
        self.forbidden = ~torch.stack(allowed)

    def states(self, recent_NT: Tensor) -> Tensor:
        """States [N] after the last tokens [N, 3], -1 where there was none."""
        first, middle, last = self.layout.first, self.layout.first_semantic, self.layout.vocab
        linguistic = (recent_NT >= first) & (recent_NT < middle)
        semantic = (recent_NT >= middle) & (recent_NT < last)
        trailing = [kind.flip(-1).long().cumprod(-1).sum(-1) for kind in (linguistic, semantic)]
        after_semantic = 2 + trailing[1]
        return torch.where(trailing[1] > 0, after_semantic, trailing[0].clamp(max=2))
