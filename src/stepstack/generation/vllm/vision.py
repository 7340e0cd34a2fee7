"""Prompts with pictures as vLLM takes them: one placeholder a picture, which it unfolds itself. Imports no vllm.

Not run with the real engine: its processor for these models needs torchvision, which has no CPU build here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stepstack.generation.types import Prompt

STRONGEST_BIAS = -100.0  # the strongest bias that vLLM takes


@dataclass(frozen=True, slots=True)
class VllmVision:
    """Facts of a vision-language model that the engine needs: its image token, the tokens that nobody may sample, and
    the bounds that pictures are resized to, which are those of the trainer."""

    image_token: int
    banned: tuple[int, ...]
    min_pixels: int
    max_pixels: int

    @property
    def bias(self) -> dict[int, float]:
        return dict.fromkeys(self.banned, STRONGEST_BIAS)

    @property
    def engine_options(self) -> dict[str, Any]:
        return {"mm_processor_kwargs": {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}}

    def inputs(self, prompt: Prompt) -> dict[str, Any]:
        """``prompt_token_ids`` with one image token a picture, and the pictures. ValueError where they do not agree."""
        ids = list(prompt.ids)
        folded = ids[:1] + [b for a, b in pairwise(ids) if not a == b == self.image_token]
        if (places := folded.count(self.image_token)) != len(prompt.pictures):
            raise ValueError(
                f"prompt {prompt.problem.index} has places for {places} pictures, and {len(prompt.pictures)} pictures: "
                "make them as many"
            )
        images = {"multi_modal_data": {"image": [p.image() for p in prompt.pictures]}} if prompt.pictures else {}
        return {"prompt_token_ids": folded, **images}
