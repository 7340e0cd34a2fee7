"""Tiny models made on the spot: real architectures and real tokenizers, a few hundred thousand parameters."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

PAD, EOS = "<pad>", "<eos>"
PIECES = ("User: ", "\nAssistant: <think>", "</think>", "<answer>", "</answer>", "\\boxed{")


def tokenizer(max_length: int = 4096) -> Qwen2Tokenizer:
    """Qwen2's byte-level tokenizer without merges: one id a byte and one a template piece, so that every text encodes.

    The architecture's own tokenizer class, because AutoTokenizer takes the class from the model type.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((PAD, EOS, *alphabet))}
    made = Qwen2Tokenizer(
        vocab=vocab, merges=[], pad_token=PAD, eos_token=EOS, unk_token=PAD, model_max_length=max_length
    )
    made.add_tokens([AddedToken(piece, normalized=False) for piece in PIECES])
    return made


def qwen2(
    vocab_size: int, *, hidden: int, layers: int, intermediate: int, seed: int, max_length: int = 4096
) -> Qwen2ForCausalLM:
    """A Qwen2ForCausalLM with 4 heads, 2 KV heads and tied embeddings; ids 0 and 1 are <pad> and <eos>."""
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
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
