"""Settings of language models that are read from a hub or a folder. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stepstack.config import Strict
from stepstack.planning.steplaw.count import count


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained(Strict):
    """A causal language model by hub name or local path."""

    type: Literal["pretrained"] = "pretrained"
    """Choice of the model: a published one."""
    path: str
    """Hub name or local folder of the model and its tokenizer."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null takes the default branch."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention implementation of transformers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the weights are kept in; ``precision`` says what is computed in."""

    @property
    def params(self) -> float:
        """Non-embedding parameters, counted from the model's config without loading a weight; on the hub the config is
        downloaded."""
        from transformers import AutoConfig

        return float(count(AutoConfig.from_pretrained(self.path, revision=self.revision).to_dict()).non_embedding)
