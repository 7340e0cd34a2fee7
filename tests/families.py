"""Tiny random models of many families of transformers, for what must hold for any of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.tools import VOCAB, perturbed

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 0,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}

APART: dict[str, dict[str, Any]] = {  # packed rows do not see each other
    "qwen2": {},
    "llama": {},
    "phi3": {},
    "olmo2": {},
    "smollm3": {},
    "gpt_neox": {},
    "granite": {},
    "starcoder2": {},
    "stablelm": {},
    "glm4": {"head_dim": 8},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 4, "head_dim": 8},
    "qwen3_moe": {"head_dim": 8, **EXPERTS},
    "gemma3_text": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
LEAKING: dict[str, dict[str, Any]] = {  # a row sees what is packed in front of it
    "qwen3_5_text": LINEAR,
    "qwen3_next": {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    "gpt_oss": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
        "logits_scaling": 1.0,
        **MAMBA,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "expand": 2},
    "falcon": {},
    "bloom": {"n_head": 4, "n_layer": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
STATEFUL = ("qwen3_5_text", "qwen3_next", "lfm2", "granitemoehybrid", "mamba2")  # layers that carry a state


def family(name: str, seed: int = 0) -> PreTrainedModel:
    """Causal LM of a ``model_type`` with two layers, whose weights are far from what they are initialised with."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[name](**{**SHAPE, **{**APART, **LEAKING}[name]})
    return perturbed(AutoModelForCausalLM.from_config(config).eval(), seed=seed)
