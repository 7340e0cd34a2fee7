"""Critic: a language model's body with a scalar head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepstack.models.lm.policy import checked_mask


class Value(nn.Module):
    """Body of a causal LM and ``value_head = Linear(hidden, 1, bias=False)``.

    The head starts at N(0, 1/(hidden+1)) like in ORZ's code (the paper writes U(-sqrt5, sqrt5); recipes/orz/README.md).
    """

    def __init__(self, lm: PreTrainedModel):
        super().__init__()
        self.body = lm.base_model
        self.config = lm.config
        self.value_head = nn.Linear(lm.config.hidden_size, 1, bias=False, dtype=lm.dtype)
        nn.init.normal_(self.value_head.weight, std=1.0 / (lm.config.hidden_size + 1))
        self._no_split_modules = lm._no_split_modules

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, select: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Value [N] fp32 of the state *before* the token that follows each position.

        These are the positions of the logits that score the action. input_ids, position_ids [B, T]; select [N] flat
        positions; ``attention_mask`` as that of ``Policy.forward``.
        """
        hidden_BTD = self.body(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=checked_mask(self.config, attention_mask),
            use_cache=False,
        ).last_hidden_state
        values_N1 = self.value_head(hidden_BTD.flatten(0, 1)[select])
        return values_N1[:, 0].to(torch.float32, copy=True)  # no view: FSDP2 hooks what a module returns
