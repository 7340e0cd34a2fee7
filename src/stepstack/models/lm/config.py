"""Settings of language models that are read from a hub or a folder. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import PositiveInt

from stepstack.bounds import Magnitude, Text, WidthOf4Heads
from stepstack.config import Needed, Strict
from stepstack.planning.steplaw.count import FAMILIES, count
from stepstack.report import jsonl

SIZES = {  # parameters of the models of configs/, by hub name
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
}
FLASH_ATTENTION = Needed("flash_attn", "pip install flash-attn --no-build-isolation (docs/clusters.md)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyQwen2(Strict):
    """A tiny Qwen2, made on the spot by ``models.lm.tiny.qwen2``."""

    hidden: WidthOf4Heads = 96
    """Width of the model."""
    layers: PositiveInt = 3
    """Layers of the model."""
    intermediate: PositiveInt = 256
    """Width of the MLPs."""
    rope_theta: Magnitude = 10_000.0
    """Base of the rotary position embedding; a small one tells near positions apart more clearly."""
    initializer_range: Magnitude = 0.02
    """Standard deviation of the initial weights."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of ``models.lm.tiny.qwen2``."""
        names = ("hidden", "layers", "intermediate", "rope_theta", "initializer_range")
        return {name: getattr(self, name) for name in names}

    @property
    def size(self) -> int:
        """Parameters without the embedding; the vocabulary is too small to count."""
        shape = {
            "model_type": "qwen2",
            "vocab_size": 1,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        return int(count(shape).non_embedding)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained(Strict):
    """A causal language model by hub name or local path."""

    type: Literal["pretrained"] = "pretrained"
    """Choice of the model: a published one."""
    path: Text
    """Hub name or local folder of the model and its tokenizer."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null takes the default branch."""
    adapter: str | None = None
    """Folder of low-rank adapters in peft's form, which are merged into the weights when they are read."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention implementation of transformers; auto: flash_attention_2 where flash-attn can be used, else sdpa, which
    the run reports."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the weights are kept in; ``precision`` says what is computed in."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.path,) if self.adapter is None else (self.path, self.adapter)

    @property
    def begins_with(self) -> tuple[str, str | None]:
        return self.path, self.revision

    def moved(self, folder: Path) -> Self:
        """Settings of a model that was made of this one, in a folder of its own."""
        return replace(self, path=str(folder), revision=None, adapter=None)

    @property
    def packages(self) -> tuple[Needed, ...]:
        return (FLASH_ATTENTION,) if self.attention == "flash_attention_2" else ()

    @property
    def size(self) -> int | None:
        """All parameters, of SIZES or counted from config.json of a local folder; None where neither knows them, since
        the hub is not asked."""
        if self.path in SIZES:
            return SIZES[self.path]
        file = Path(self.path) / "config.json"
        fields = jsonl.read_json(file) if file.is_file() else {}
        return count(fields).total if fields.get("model_type") in FAMILIES else None

    @property
    def params(self) -> float:
        """Non-embedding parameters, counted from the model's config without loading a weight; on the hub the config is
        downloaded."""
        from transformers import AutoConfig

        from stepstack.models.whole import reading

        with reading(self.path):
            config = AutoConfig.from_pretrained(self.path, revision=self.revision)
        return float(count(config.to_dict()).non_embedding)
