"""Settings of vision-language models that are read from a hub or a folder. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from stepstack.models.lm.config import Pretrained
from stepstack.scoring.vision.spatial import smart_resize


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedVl(Pretrained):
    """A vision-language model by hub name or local path."""

    min_pixels: PositiveInt = 3136
    """Least pixels of a picture; a smaller one is enlarged."""
    max_pixels: PositiveInt = 1_000_000
    """Most pixels of a picture; a larger one is reduced. A token of the model is 28 x 28 of them."""
    freeze: Literal["none", "tower"] = "none"
    """Part that is not trained; tower trains the language model alone."""

    def model_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of a picture as the model sees it."""
        return smart_resize(*size, min_pixels=self.min_pixels, max_pixels=self.max_pixels)
