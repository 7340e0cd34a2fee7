"""Tokenizer and image processor of a vision-language model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stepstack.models.lm.tiny import VISION
from stepstack.models.vision.policy import ImagePatcher


@dataclass(frozen=True, slots=True)
class Processor:
    """Tokenizer and image processor that belong together."""

    tokenizer: PreTrainedTokenizerBase
    patcher: ImagePatcher

    @property
    def banned(self) -> list[int]:
        """Tokens that stand for pictures, which must not be sampled because they would have no picture."""
        ids = self.tokenizer.get_vocab()
        return [ids[name] for name in VISION]

    @property
    def image_token(self) -> int:
        """Token that stands for a piece of a picture."""
        return self.tokenizer.get_vocab()["<|image_pad|>"]

    @property
    def pixels(self) -> tuple[int, int]:
        """Least and largest number of pixels that a picture is resized to."""
        size = self.patcher.processor.size
        return size["shortest_edge"], size["longest_edge"]

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.patcher.processor.save_pretrained(folder)
