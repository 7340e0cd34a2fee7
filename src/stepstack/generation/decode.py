"""One step of decoding with a KV cache, for left-padded batches whose finished rows leave.

``Fused`` computes the Qwen2/Llama block by itself from a state dict: one matmul for q, k and v, one for gate and up, a
preallocated cache, and none of the per-step bookkeeping of a general library. On small models that bookkeeping is most
of the time. ``Module`` runs any Hugging Face causal LM with its own cache class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from stepstack.config import ConfigError

M = TypeVar("M", bound=nn.Module)

FUSED = ("qwen2", "llama", "qwen2_vl_text", "qwen2_5_vl_text")


def unfit(config: PretrainedConfig) -> str | None:
    """Why ``Fused`` cannot decode a model, or None."""
    values = config.to_dict()
    if config.model_type not in FUSED:
        return f"it knows {', '.join(FUSED)}, not {config.model_type}"
    if config.rope_parameters.get("rope_type", "default") != "default" or values.get("use_sliding_window"):
        return f"it knows plain RoPE without sliding windows, not {config.rope_parameters}"
    if config.hidden_act != "silu" or values.get("mlp_bias") or values.get("attention_bias"):
        return "it knows SiLU, and biases on q, k and v alone"
    return None


class Decoder(Protocol):
    """Holds weights and the cache of one batch of rows."""

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None: ...

    def prefill(
        self, ids_BT: Tensor, pad_B: Tensor, copies: int, room: int, pictures: Sequence[Sequence[Any]] = ()
    ) -> Tensor:
        """Start a batch from left-padded prompts (``pad_B`` columns of padding each), repeat each row ``copies`` times,
        with ``room`` columns for what follows; ``pictures`` row by row where there are any. Returns the logits after
        the last column, [B * copies, V]."""
        ...

    def step(self, ids_B: Tensor) -> Tensor:
        """Append one token a row; logits [B, V]."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Only these rows (indices) go on."""
        ...


class Workspace:
    """Tensors that each layer of a forward over [B, T] tokens writes anew, and views of them. They are made once for a
    batch, because on a small model making them takes as long as some of the arithmetic."""

    def __init__(self, decoder: Fused, batch: int, width: int):
        rows, kv_heads, head_dim, turned = batch * width, decoder.kv_heads, decoder.head_dim, decoder.rotated

        def empty(*shape: int, dtype: torch.dtype = decoder.dtype) -> Tensor:
            return torch.empty(shape, device=decoder.device, dtype=dtype)

        self.batch = batch
        self.scale_R1 = empty(rows, 1, dtype=torch.float32)
        self.normed_RD = empty(rows, decoder.config.hidden_size)
        self.qkv = empty(rows, turned + kv_heads * head_dim)
        self.gate_up = empty(rows, 2 * decoder.config.intermediate_size)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)
        # Complex numbers are float32: in another type q and k are copied there and back.
        self.same = decoder.dtype == torch.float32
        self.plain = self.qkv[:, :turned] if self.same else empty(rows, turned, dtype=torch.float32)
        self.pairs = torch.view_as_complex(self.plain.unflatten(1, (-1, 2)))
        self.turned_pairs = torch.empty_like(self.pairs)
        self.turned_float = torch.view_as_real(self.turned_pairs).flatten(1)
        self.turned = self.turned_float if self.same else empty(rows, turned)
        heads = self.turned.view(batch, width, kv_heads, decoder.groups + 1, head_dim)
        self.q = heads[:, :, :, :-1]
        self.new_keys = heads[:, :, :, -1].permute(0, 2, 3, 1)
        self.new_values = self.qkv[:, turned:].view(batch, width, kv_heads, head_dim).transpose(1, 2)
        self.mixed = empty(batch * kv_heads, decoder.groups, head_dim)
        self.mixed_BD = self.mixed.view(batch, -1)

    def rotate(self, rotation: Tensor) -> None:
        """Rotate q and k."""
        if not self.same:
            self.plain.copy_(self.qkv[:, : self.plain.shape[1]])
        torch.mul(self.pairs, rotation, out=self.turned_pairs)
        if not self.same:
            self.turned.copy_(self.turned_float)


class Fused:
    """Qwen2 and Llama, with a copy of the weights in a layout made for decoding.

    A norm's weight is folded into the matrix behind it. One product makes q, k and v; its columns stand in the order of
    the KV heads, each behind the query heads that share it, so that attention copies nothing. The two numbers that
    rotary embedding rotates together stand side by side, and rotation is one product of complex numbers. On a small
    model a third of the time goes to what is no matrix product.
    """

    def __init__(self, config: PretrainedConfig, device: torch.device | str, dtype: torch.dtype):
        if reason := unfit(config):
            raise ValueError(f"Fused cannot decode this model, {reason}: use decoder=module")
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.groups = self.heads // self.kv_heads
        self.head_dim = config.to_dict().get("head_dim") or config.hidden_size // self.heads
        self.rotated = (self.heads + self.kv_heads) * self.head_dim  # columns of q and k, before those of v
        self.eps_1 = torch.tensor([config.rms_norm_eps], device=self.device)
        self.theta = config.rope_parameters["rope_theta"]
        self.layers: list[dict[str, Any]] = []

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        w = {name: value.detach().to(self.device) for name, value in weights}
        self.embed = w["model.embed_tokens.weight"].to(self.dtype, copy=True)
        self.head = self._folded(w.get("lm_head.weight", self.embed), w["model.norm.weight"])  # tied: it has none
        self.layers = [self._layer(w, f"model.layers.{i}.") for i in range(self.config.num_hidden_layers)]

    def _layer(self, w: dict[str, Tensor], p: str) -> dict[str, Any]:
        def stacked(kind: str) -> Tensor | None:
            parts = [w.get(f"{p}self_attn.{x}_proj.{kind}") for x in "qkv"]
            if parts[0] is None:
                return None
            q, k, v = (part.unflatten(0, (self.kv_heads, -1, self.head_dim)) for part in parts if part is not None)
            heads = torch.cat([q * self.head_dim**-0.5, k], dim=1)
            pairs = heads.unflatten(2, (2, -1)).transpose(2, 3)
            return torch.cat([pairs.flatten(0, 3), v.flatten(0, 2)])

        matrix, bias = stacked("weight"), stacked("bias")
        assert matrix is not None
        up = torch.cat([w[f"{p}mlp.gate_proj.weight"], w[f"{p}mlp.up_proj.weight"]])
        return {
            "qkv": self._folded(matrix, w[f"{p}input_layernorm.weight"]),
            "bias": None if bias is None else bias.to(self.dtype),
            "out": w[f"{p}self_attn.o_proj.weight"].t().to(self.dtype).contiguous(),
            "up": self._folded(up, w[f"{p}post_attention_layernorm.weight"]),
            "down": w[f"{p}mlp.down_proj.weight"].t().to(self.dtype).contiguous(),
        }

    def _folded(self, matrix_OI: Tensor, norm_I: Tensor) -> Tensor:
        """[I, O] of a matrix behind an RMSNorm."""
        return (matrix_OI.float() * norm_I.float()).t().to(self.dtype).contiguous()

    def prefill(
        self, ids_BT: Tensor, pad_B: Tensor, copies: int, room: int, pictures: Sequence[Sequence[Any]] = ()
    ) -> Tensor:
        batch, width = ids_BT.shape
        total = width + room
        # Keys lie transposed, [B, K, d, T] beside values' [B, K, T, d]: the faster product on CPU.
        shapes = (batch, self.kv_heads, self.head_dim, total), (batch, self.kv_heads, total, self.head_dim)
        self.cache = [[torch.zeros(s, device=self.device, dtype=self.dtype) for s in shapes] for _ in self.layers]
        self.pad, self.at = pad_B.to(self.device), 0
        self.turns = self._turns(torch.arange(total, dtype=torch.float32, device=self.device)[:, None])
        column = torch.arange(total, device=self.device)
        hidden = torch.zeros(batch, 1, total, device=self.device, dtype=self.dtype)
        self.mask = hidden.masked_fill_(column < self.pad[:, None, None], float("-inf"))  # -inf on padding
        self.padded = bool(self.pad.any())
        self.space = Workspace(self, batch, width)
        last_BD = self._blocks(ids_BT.to(self.device))
        if copies > 1:
            rows = torch.arange(batch, device=self.device).repeat_interleave(copies)
            self.keep(rows)
            last_BD = last_BD[rows]
        return self._logits(last_BD)

    def step(self, ids_B: Tensor) -> Tensor:
        return self._logits(self._blocks(ids_B[:, None]))

    def keep(self, rows: Tensor) -> None:
        # Only the columns in use are worth copying.
        for layer in self.cache:
            keys, values = layer
            layer[0] = keys.new_empty(len(rows), *keys.shape[1:])
            layer[1] = values.new_empty(len(rows), *values.shape[1:])
            layer[0][..., : self.at] = keys[rows, :, :, : self.at]
            layer[1][:, :, : self.at] = values[rows, :, : self.at]
        self.pad, self.mask = self.pad[rows], self.mask[rows]
        self.padded = bool(self.pad.any())
        self.space = Workspace(self, len(rows), 1)

    def _turns(self, position_RP: Tensor) -> Tensor:
        """Rotations [R, (heads + kv_heads) * P], complex numbers of absolute value 1, of the pairs of q and k at
        positions [R, P], or [R, 1] where all pairs of a head have one."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=self.device) / self.head_dim
        angle = (position_RP * (1.0 / self.theta**exponent)).repeat(1, self.heads + self.kv_heads)
        return torch.complex(angle.cos(), angle.sin())

    def _normed(self, x_RD: Tensor) -> Tensor:
        """Rows divided by their RMS, in the workspace."""
        scale_R1 = self.space.scale_R1
        torch.linalg.vector_norm(x_RD, dim=-1, keepdim=True, dtype=torch.float32, out=scale_R1)
        torch.addcmul(self.eps_1, scale_R1, scale_R1, value=1 / x_RD.shape[1], out=scale_R1).rsqrt_()
        return torch.mul(x_RD, scale_R1, out=self.space.normed_RD)

    def _logits(self, x_BD: Tensor) -> Tensor:
        return self._normed(x_BD) @ self.head

    def _blocks(self, ids_BT: Tensor) -> Tensor:
        """Last column's hidden states [B, D] before the last norm; appends T columns to the cache."""
        batch, width = ids_BT.shape
        end, space = self.at + width, self.space
        x = self._embedded(ids_BT)
        rotation = self._rotation(width)
        mask = self._attention_mask(width, end)
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            if layer["bias"] is None:
                torch.mm(self._normed(x), layer["qkv"], out=space.qkv)
            else:
                torch.addmm(layer["bias"], self._normed(x), layer["qkv"], out=space.qkv)
            space.rotate(rotation)
            keys.narrow(3, self.at, width).copy_(space.new_keys)
            values.narrow(2, self.at, width).copy_(space.new_values)
            if width == 1:
                mixed = self._attend_one(space.q[:, 0], keys, values, end, mask)
            elif layer is self.layers[-1]:  # no later layer needs the other columns
                x, q = x.view(batch, width, -1)[:, -1].clone(), space.q[:, -1]
                self.space = space = Workspace(self, batch, 1)
                mixed = self._attend_one(q, keys, values, end, self._attention_mask(1, end))
            else:
                mixed = self._attend(space.q, keys, values, end, mask)
            x.addmm_(mixed, layer["out"])
            torch.mm(self._normed(x), layer["up"], out=space.gate_up)
            x.addmm_(F.silu(space.gate, inplace=True).mul_(space.up), layer["down"])
        self.at = end
        return x

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        """[B * T, D]."""
        return F.embedding(ids_BT.flatten(), self.embed)

    def _attend_one(self, q: Tensor, keys: Tensor, values: Tensor, end: int, mask_B1T: Tensor | None) -> Tensor:
        """[B, H * d] of queries [B, K, H / K, d]. Heads that share keys are rows of one product: no key is repeated."""
        space = self.space
        scores = torch.bmm(q.reshape(-1, self.groups, self.head_dim), keys.flatten(0, 1).narrow(2, 0, end))
        if mask_B1T is not None:
            scores.view(space.batch, self.heads, end).add_(mask_B1T)
        torch.bmm(scores.softmax(-1), values.flatten(0, 1).narrow(1, 0, end), out=space.mixed)
        return space.mixed_BD

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, end: int, mask: Tensor | None) -> Tensor:
        """[B * T, H * d] of queries [B, T, K, H / K, d]."""
        mixed = F.scaled_dot_product_attention(
            q.flatten(2, 3).transpose(1, 2),
            keys[..., :end].transpose(2, 3),
            values[:, :, :end],
            attn_mask=mask,
            is_causal=mask is None,
            scale=1.0,  # it is in the q rows
            enable_gqa=True,
        )
        return mixed.transpose(1, 2).reshape(-1, self.heads * self.head_dim)

    def _rotation(self, width: int) -> Tensor:
        """Rotations of the new columns: one row for all where nothing is padded and one column is new."""
        if width == 1:
            return self.turns[self.at - self.pad] if self.padded else self.turns[self.at]
        column = torch.arange(self.at, self.at + width, device=self.device)
        return self.turns[(column - self.pad[:, None]).clamp(min=0).flatten()]

    def _attention_mask(self, width: int, end: int) -> Tensor | None:
        """Additive: [B, 1, end] for one column, [B, 1, T, end] for several; None where nothing is padded."""
        if not self.padded:
            return None
        mask = self.mask[..., :end]
        if width == 1:
            return mask
        causal = torch.full((width, end), float("-inf"), device=self.device, dtype=self.dtype).triu(1)
        mask = (mask + causal)[:, None]
        # A padded query would see no key and give NaN: it sees column 0, and nobody reads its output.
        mask[..., 0].clamp_(min=torch.finfo(self.dtype).min)
        return mask


def with_memory(module: M, device: torch.device | str) -> M:
    """A module on the device. Parameters of the meta device get memory, which ``load`` fills; tied ones stay tied."""
    allocated: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.is_meta:
                new = allocated.setdefault(
                    id(parameter), nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=False)
                )
                setattr(part, name, new)
    return module.to(device)


class Module:
    """Any Hugging Face causal LM, with its own cache."""

    def __init__(self, lm: PreTrainedModel):
        """ConfigError for a model whose layers carry a state, which cannot be split by rows."""
        if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=lm.config).layers):
            raise ConfigError(
                f"the engine hf keeps keys and values, and {lm.config.model_type} has layers that carry a state "
                "(linear attention, convolution or Mamba): sample with rollout.generator.type=vllm"
            )
        self.lm = lm.eval()
        self.device = lm.device

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        own = dict(self.lm.named_parameters())
        for name, value in weights:
            own[name].data.copy_(value)

    @torch.no_grad()
    def prefill(
        self, ids_BT: Tensor, pad_B: Tensor, copies: int, room: int, pictures: Sequence[Sequence[Any]] = ()
    ) -> Tensor:
        if any(pictures):
            raise ValueError(f"decoder=module reads no pictures ({self.lm.config.model_type}): use decoder=fused")
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
        position = torch.arange(self.at, self.at + width, device=self.device) - pad_B[:, None]
        # A row that has ended may stay for a while, beyond the last position that the model has.
        position = position.clamp(min=0, max=self.lm.config.max_position_embeddings - 1)
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
