"""Decoding with pictures: the language model of Qwen2-VL and Qwen2.5-VL is a Qwen2 whose prompt has other positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from stepstack.generation.decode import Fused, with_memory
from stepstack.models.vision.policy import ImagePatcher, features, positions

if TYPE_CHECKING:
    from stepstack.records import Picture

TEXT, TOWER = "model.language_model.", "model.visual."


class FusedVision(Fused):
    """``Fused`` with a copy of the vision tower. A picture goes through it once, whatever samples its prompt has."""

    def __init__(self, lm: PreTrainedModel, patcher: ImagePatcher, device: torch.device):
        super().__init__(lm.config.text_config, device, lm.dtype)
        self.tower = with_memory(deepcopy(lm.model.visual), device).requires_grad_(False).eval()
        self.patcher, self.token = patcher, lm.config.image_token_id
        self.sections = lm.config.text_config.rope_parameters["mrope_section"]

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        tensors = dict(weights)
        own = dict(self.tower.named_parameters())
        with torch.no_grad():
            for name in own:
                own[name].copy_(tensors[TOWER + name])
        super().load(("model." + n.removeprefix(TEXT) if n.startswith(TEXT) else n, w) for n, w in tensors.items())

    @torch.no_grad()
    def prefill(
        self, ids_BT: Tensor, pad_B: Tensor, copies: int, room: int, pictures: Sequence[Sequence[Picture]] = ()
    ) -> Tensor:
        batch, width = ids_BT.shape
        row_pictures = pictures or [()] * batch
        self.position_3BT = torch.zeros(3, batch, width, dtype=torch.long)
        for row, pad in enumerate(pad_B.tolist()):
            grids = [self.patcher.patches(picture).grid for picture in row_pictures[row]]
            row_positions = positions(ids_BT[row, pad:].tolist(), grids, self.token, self.patcher.merge)
            self.position_3BT[:, row, pad:] = row_positions
        # What follows counts on from the last position, which pictures have made smaller than the number of tokens.
        self.behind = (width - pad_B - 1 - self.position_3BT[:, :, -1].amax(0)).to(self.device)
        self.seen = features(self.tower, self.patcher, row_pictures).to(self.dtype) if any(row_pictures) else None
        self.position_3BT = self.position_3BT.to(self.device)
        return super().prefill(ids_BT, pad_B, copies, room)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.behind = self.behind[rows]

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        x = F.embedding(ids_BT.flatten(), self.embed)
        if self.at == 0 and self.seen is not None:
            x = x.masked_scatter((ids_BT.flatten() == self.token)[:, None], self.seen)
        return x

    def _rotation(self, width: int) -> Tensor:
        if self.at:
            return self.turns[self.at - self.pad - self.behind]
        # Each pair of rotated numbers follows one of the three positions.
        owner = torch.repeat_interleave(torch.arange(3), torch.tensor(self.sections)).to(self.device)
        return self._turns(self.position_3BT.flatten(1)[owner].t().float())
