"""One step of decoding with a KV cache, for left-padded batches whose finished rows leave.

``Fused`` computes the Qwen2/Llama block by itself from a state dict: one matmul for q, k and v, one for gate and up, a
preallocated cache, and none of the per-step bookkeeping of a general library. On small models that bookkeeping is most
of the time. ``Module`` runs any Hugging Face causal LM with its own cache class.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

FUSED = ("qwen2", "llama")


class Decoder(Protocol):
    """Holds weights and the cache of one batch of rows."""

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None: ...

    def prefill(self, ids_BT: Tensor, pad_B: Tensor, copies: int, room: int) -> Tensor:
        """Start a batch from left-padded prompts (``pad_B`` columns of padding each), repeat each row ``copies`` times,
        with ``room`` columns for what follows. Returns the logits after the last column, [B * copies, V]."""
        ...

    def step(self, ids_B: Tensor) -> Tensor:
        """Append one token a row; logits [B, V]."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Only these rows (indices) go on."""
        ...


class Fused:
    """Qwen2 and Llama. Holds its own copy of the weights, in a layout made for decoding."""

    def __init__(self, config: PretrainedConfig, device: torch.device | str, dtype: torch.dtype):
        if config.model_type not in FUSED:
            raise ValueError(f"Fused decodes {', '.join(FUSED)}, not {config.model_type}")
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.to_dict().get("head_dim") or config.hidden_size // self.heads
        self.layers: list[dict[str, Any]] = []
        rope = config.rope_parameters
        if rope.get("rope_type", "default") != "default" or config.to_dict().get("use_sliding_window"):
            raise ValueError(
                f"Fused knows plain RoPE without sliding windows; this model has {rope}: use decoder=module"
            )
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        self.frequency = (1.0 / rope["rope_theta"] ** exponent).to(self.device)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        w = {name: value.detach().to(self.device, self.dtype) for name, value in weights}
        self.embed = w["model.embed_tokens.weight"]
        self.norm = w["model.norm.weight"]
        self.head = self.embed.t() if self.config.tie_word_embeddings else w["lm_head.weight"].t().contiguous()
        self.layers = []
        for i in range(self.config.num_hidden_layers):
            p = f"model.layers.{i}."
            qkv = [f"{p}self_attn.{x}_proj" for x in "qkv"]
            bias = torch.cat([w[f"{n}.bias"] for n in qkv]) if f"{qkv[0]}.bias" in w else None
            self.layers.append(
                {
                    "norm1": w[f"{p}input_layernorm.weight"],
                    "qkv": torch.cat([w[f"{n}.weight"] for n in qkv]).contiguous(),
                    "bias": bias,
                    "out": w[f"{p}self_attn.o_proj.weight"].clone(),
                    "norm2": w[f"{p}post_attention_layernorm.weight"],
                    "up": torch.cat([w[f"{p}mlp.gate_proj.weight"], w[f"{p}mlp.up_proj.weight"]]),
                    "down": w[f"{p}mlp.down_proj.weight"].clone(),
                }
            )

    def prefill(self, ids_BT: Tensor, pad_B: Tensor, copies: int, room: int) -> Tensor:
        batch, width = ids_BT.shape
        total = width + room
        shape = (batch, self.kv_heads, total, self.head_dim)
        self.cache = [[torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in "kv"] for _ in self.layers]
        self.pad, self.at = pad_B.to(self.device), 0
        # Additive mask over columns: -inf on padding. [B, 1, 1, total]
        column = torch.arange(total, device=self.device)
        self.mask = torch.zeros(batch, 1, 1, total, device=self.device, dtype=self.dtype)
        self.mask.masked_fill_(column < self.pad[:, None, None, None], float("-inf"))
        self.padded = bool(self.pad.any())
        hidden = self._blocks(ids_BT.to(self.device))[:, -1]
        rows = torch.arange(batch, device=self.device).repeat_interleave(copies)
        if copies > 1:
            self.keep(rows)
            hidden = hidden[rows]
        return self._logits(hidden)

    def step(self, ids_B: Tensor) -> Tensor:
        return self._logits(self._blocks(ids_B[:, None])[:, 0])

    def keep(self, rows: Tensor) -> None:
        # Only the columns in use are worth copying.
        for layer in self.cache:
            for i, old in enumerate(layer):
                new = old.new_empty(len(rows), *old.shape[1:])
                torch.index_select(old[:, :, : self.at], 0, rows, out=new[:, :, : self.at])
                layer[i] = new
        self.pad, self.mask = self.pad[rows], self.mask[rows]
        self.padded = bool(self.pad.any())

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        return F.rms_norm(hidden_BD, hidden_BD.shape[-1:], self.norm, self.config.rms_norm_eps) @ self.head

    def _blocks(self, ids_BT: Tensor) -> Tensor:
        """Hidden states [B, T, D] before the last norm; appends T columns to the cache."""
        batch, width = ids_BT.shape
        x = F.embedding(ids_BT, self.embed)
        position = (torch.arange(self.at, self.at + width, device=self.device) - self.pad[:, None]).clamp(min=0)
        angle = position[:, :, None, None] * self.frequency  # [B, T, 1, head_dim / 2]
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        end = self.at + width
        eps, dim = self.config.rms_norm_eps, x.shape[-1:]
        groups = self.heads // self.kv_heads
        mask = self.mask[..., :end] if self.padded else None
        if width > 1:
            causal = torch.full((width, end), float("-inf"), device=self.device, dtype=self.dtype).triu(end - width + 1)
            # A padded query would see no key at all and give NaN: let it see column 0; nobody reads its output.
            mask = causal if mask is None else (mask + causal)
            mask[..., 0].clamp_(min=torch.finfo(self.dtype).min)
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            h = F.rms_norm(x, dim, layer["norm1"], eps)
            qkv = F.linear(h, layer["qkv"], layer["bias"]).view(batch, width, -1, self.head_dim)
            rotated = self._rotate(qkv[:, :, : self.heads + self.kv_heads], cos, sin)
            keys[:, :, self.at : end] = rotated[:, :, self.heads :].transpose(1, 2)
            values[:, :, self.at : end] = qkv[:, :, self.heads + self.kv_heads :].transpose(1, 2)
            q = rotated[:, :, : self.heads].transpose(1, 2)
            if width == 1:  # fold the query heads of a KV head into rows: one product, no repeated keys
                q = q.reshape(batch, self.kv_heads, groups, self.head_dim)
                scores = q @ keys[:, :, :end].transpose(-1, -2) * self.head_dim**-0.5
                scores = scores if mask is None else scores + mask
                mixed = (scores.softmax(-1) @ values[:, :, :end]).reshape(batch, 1, -1)
            else:
                mixed = F.scaled_dot_product_attention(
                    q, keys[:, :, :end], values[:, :, :end], attn_mask=mask, enable_gqa=True
                )
                mixed = mixed.transpose(1, 2).reshape(batch, width, -1)
            x = x + F.linear(mixed, layer["out"])
            gate, up = F.linear(F.rms_norm(x, dim, layer["norm2"], eps), layer["up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        self.at = end
        return x

    @staticmethod
    def _rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x_BTHD.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Module:
    """Any Hugging Face causal LM, with its own cache."""

    def __init__(self, lm: PreTrainedModel):
        self.lm = lm.eval()
        self.device = lm.device

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        own = dict(self.lm.named_parameters())
        for name, value in weights:
            own[name].data.copy_(value)

    @torch.no_grad()
    def prefill(self, ids_BT: Tensor, pad_B: Tensor, copies: int, room: int) -> Tensor:
        self.pad = pad_B.to(self.device).repeat_interleave(copies)
        self.cache = DynamicCache(config=self.lm.config)
        self.at = 0
        self.mask = (torch.arange(ids_BT.shape[1], device=self.device) >= pad_B[:, None].to(self.device)).long()
        logits = self._forward(ids_BT.to(self.device), pad_B.to(self.device))
        if copies > 1:
            self.cache.batch_repeat_interleave(copies)
            self.mask = self.mask.repeat_interleave(copies, 0)
            logits = logits.repeat_interleave(copies, 0)
        return logits

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        self.mask = F.pad(self.mask, (0, 1), value=1)
        return self._forward(ids_B[:, None], self.pad)

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.pad, self.mask = self.pad[rows], self.mask[rows]

    def _forward(self, ids_BT: Tensor, pad_B: Tensor) -> Tensor:
        width = ids_BT.shape[1]
        position = (torch.arange(self.at, self.at + width, device=self.device) - pad_B[:, None]).clamp(min=0)
        self.at += width
        out = self.lm(
            input_ids=ids_BT,
            attention_mask=self.mask,
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]
