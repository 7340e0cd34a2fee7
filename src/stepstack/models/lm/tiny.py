"""Tiny models built on the spot: real architectures and real tokenizers, a few hundred thousand parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

PAD, EOS = "<pad>", "<eos>"
PIECES = ("User: ", "\nAssistant: <think>", "</think>", "<answer>", "</answer>", "\\boxed{")


# Qwen2-VL's own special tokens, by their published names.
CHAT = ("<|im_start|>", "<|im_end|>")
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
BOXES = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")


def tokenizer(max_length: int = 4096, pieces: Sequence[str] = PIECES, special: Sequence[str] = ()) -> Qwen2Tokenizer:
    """Byte-level Qwen2 tokenizer without merges: one id a byte and one a piece, so that every text encodes.

    Where pieces overlap the longest counts. It is the architecture's own tokenizer class, because AutoTokenizer takes
    the class from the model type.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((PAD, EOS, *alphabet))}
    tiny_tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[], pad_token=PAD, eos_token=EOS, unk_token=PAD, model_max_length=max_length
    )
    tiny_tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    tiny_tokenizer.add_tokens(
        [AddedToken(name, normalized=False, special=True) for name in special], special_tokens=True
    )
    return tiny_tokenizer


def qwen2(
    vocab_size: int,
    *,
    hidden: int,
    layers: int,
    intermediate: int,
    rope_theta: float = 10_000.0,
    initializer_range: float = 0.02,
    seed: int,
    max_length: int = 4096,
) -> Qwen2ForCausalLM:
    """Qwen2ForCausalLM with 4 heads, 2 KV heads and tied embeddings; ids 0 and 1 are <pad> and <eos>."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=intermediate,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=max_length,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            initializer_range=initializer_range,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def qwen2_5_vl(
    tokenizer: Qwen2Tokenizer,
    *,
    hidden: int = 96,
    layers: int = 3,
    intermediate: int = 256,
    tower: int = 64,
    depth: int = 2,
    patch: int = 14,
    theta: float = 10.0,
    spread: float = 0.08,
    seed: int,
    max_length: int = 512,
) -> Qwen2_5_VLForConditionalGeneration:
    """Small Qwen2.5-VL for ``tokenizer(special=(*CHAT, *VISION, ...))``.

    ``theta`` is small, because rows and columns of a few patches must differ in the slow half of RoPE that M-RoPE gives
    them. ``spread``: standard deviation of the initial weights; the usual 0.02 is far slower at this width.
    """
    ids = {name: int(tokenizer.get_vocab()[name]) for name in (*CHAT, *VISION)}
    pairs = hidden // 4 // 2  # rotated pairs of numbers in a head
    side = pairs // 3
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_length,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": theta,
            "mrope_section": [pairs - 2 * side, side, side],
        },
        "initializer_range": spread,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = _tower(tower, depth, patch) | {"out_hidden_size": hidden, "initializer_range": spread}
    torch.manual_seed(seed)
    lm = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            tie_word_embeddings=True,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
    )
    lm.generation_config.eos_token_id = ids["<|im_end|>"]
    return lm


def _tower(hidden: int, depth: int, patch: int) -> dict[str, Any]:
    """Config of a vision tower that attends to the whole picture in each block."""
    return {
        "depth": depth,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_heads": 4,
        "patch_size": patch,
        "window_size": 8 * patch,
        "fullatt_block_indexes": list(range(depth)),
    }


def image_processor(patch: int = 14) -> Qwen2VLImageProcessorPil:
    """Image processor that keeps the size of pictures whose sides are multiples of two patches."""
    side = 2 * patch
    return Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, min_pixels=side * side, max_pixels=1 << 22)
