"""Models of transformers by hub name or folder: with their weights, or without."""

from __future__ import annotations

import copy
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_flash_attn_2_available

from stepstack.config import ConfigError
from stepstack.models.lm.config import Pretrained
from stepstack.models.whole import load_whole, reading


def load(cfg: Pretrained, auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """Model with its weights, adapters merged; ``auto`` is the Auto class of its task. ConfigError as of
    ``models.whole.load_whole``."""
    how = {"attn_implementation": attention(cfg), "dtype": getattr(torch, cfg.dtype)}
    lm = _as_stored(load_whole(auto, cfg.path, revision=cfg.revision, **how), model_config(cfg))
    return lm if cfg.adapter is None else merged(lm, cfg.adapter)


def merged(lm: PreTrainedModel, folder: str) -> PreTrainedModel:
    """The model with the adapters of a peft folder in its weights. ConfigError where they are not its own."""
    if not (Path(folder) / "adapter_config.json").is_file():
        raise ConfigError(f"model.adapter={folder} has no adapter_config.json: give a folder that peft wrote")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(lm, folder)
    if missing := [str(w.message) for w in said if "missing adapter keys" in str(w.message)]:
        raise ConfigError(f"model.adapter={folder} is not an adapter of this model: {missing[0][:200]}")
    return adapted.merge_and_unload()


def skeleton(cfg: Pretrained, auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """Model without its weights. On the meta device it takes no memory."""
    config = model_config(cfg)
    stored = copy.deepcopy(config)
    lm = auto.from_config(config, attn_implementation=attention(cfg), dtype=getattr(torch, cfg.dtype))
    return _as_stored(lm, stored)


def _as_stored(lm: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """The model with the type of the weights in its folder in its config, where transformers puts that in memory: it is
    exported in that one. A config that names none leaves it."""
    stored = config.dtype if config.dtype is not None else config.get_text_config().dtype
    if stored is not None:
        lm.config.dtype = stored
    return lm


def model_config(cfg: Pretrained) -> PreTrainedConfig:
    """Config of the model, from its folder or the hub. ConfigError where neither has one."""
    with reading(cfg.path):
        return AutoConfig.from_pretrained(cfg.path, revision=cfg.revision)


def attention(cfg: Pretrained) -> str:
    """Attention implementation of transformers that the model gets."""
    return best_attention() if cfg.attention == "auto" else cfg.attention


@cache
def best_attention() -> str:
    """Flash attention where its package and a GPU are there, else torch's own; said once a process."""
    chosen = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
    print(f"attention=auto: {chosen}", file=sys.stderr, flush=True)
    return chosen


def load_tokenizer(cfg: Pretrained) -> PreTrainedTokenizerBase:
    """Tokenizer of the model. ConfigError where there is none, or one with ids that the model has no embedding for."""
    with reading(cfg.path):
        tokenizer = AutoTokenizer.from_pretrained(cfg.path, revision=cfg.revision)
    rows = model_config(cfg).get_text_config().vocab_size
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    if ids > rows:
        raise ConfigError(
            f"{cfg.path}: its tokenizer has {ids} ids, its model {rows} embeddings: save the model after "
            "resize_token_embeddings, or the tokenizer that belongs to it"
        )
    return tokenizer


def load_generation(cfg: Pretrained) -> GenerationConfig:
    """How the model generates unless told otherwise, with its end tokens; made of its config where it has no
    generation_config.json."""
    try:
        return GenerationConfig.from_pretrained(cfg.path, revision=cfg.revision or "main")
    except OSError:
        return GenerationConfig.from_model_config(model_config(cfg))
