"""Kernels as operators of torch (fake and autograd registered, so that torch.compile sees one node each)."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from stepstack_kernels.dsv import triton_attention as kernels
from stepstack_kernels.dsv.tiles import descriptor, interpreted, power, rows_dense, strides

LOG2E = 1 / math.log(2)
# Lists of the kernels: order, offsets, indices.
Lists = list[Tensor]


def sizes(q: Tensor, q_size: int, k_size: int) -> dict[str, Any]:
    dim = q.shape[-1]
    return {
        "D": dim,
        "BLOCK_D": power(dim),
        "TILE_M": power(q_size),
        "TILE_N": power(k_size),
        "UPCAST": interpreted and q.dtype == torch.bfloat16,
    }


def pieces(rows: int, side: str) -> Any:
    """Grid of programs: every list's block in pieces of the configuration's tile."""
    return lambda meta: (rows * triton.cdiv(meta[f"TILE_{side}"], min(meta[f"BLOCK_{side}"], meta[f"TILE_{side}"])),)


def token_major(x: Tensor) -> Tensor:
    """Empty tensor in x's shape [B, H, tokens, D], laid out [B, tokens, H, D] like the projections around attention."""
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


@torch.library.custom_op("stepstack::block_sparse_attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Tensor,
    k_starts: Tensor,
    lists: Lists,
    transposed: Lists,
    q_size: int,
    k_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output o [B, H, S, D] and the base-2 log-sum-exp of the scores [B, H, S]. ``transposed`` is for the backward
    only."""
    q, k, v = rows_dense(q), rows_dense(k), rows_dense(v)
    out = token_major(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    order, offsets, indices, q_starts, k_starts = (x.contiguous() for x in (*lists, q_starts, k_starts))
    kernels.forward[pieces(order.shape[0], "M")](
        *(q, k, v, out, lse),
        *map(strides, (q, k, v, out)),
        *map(descriptor, (q, k, v)),
        *(order, offsets, indices, q_starts, k_starts),
        *(q.shape[1], q_starts.shape[0] - 1, q.shape[2], scale * LOG2E),
        **sizes(q, q_size, k_size),
    )
    return out, lse


@attention.register_fake
def _(q, k, v, q_starts, k_starts, lists, transposed, q_size, k_size, scale):
    return token_major(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)


@torch.library.custom_op("stepstack::block_sparse_attention_backward", mutates_args=())
def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    q_starts: Tensor,
    k_starts: Tensor,
    lists: Lists,
    transposed: Lists,
    q_size: int,
    k_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, d_out = rows_dense(q), rows_dense(k), rows_dense(v), rows_dense(d_out)
    dq, dk, dv = token_major(q), token_major(k), token_major(v)
    delta = torch.empty_like(lse)
    descriptors = [descriptor(x) for x in (q, k, v, d_out)]
    more = sizes(q, q_size, k_size)
    order, offsets, indices, q_starts, k_starts = (x.contiguous() for x in (*lists, q_starts, k_starts))
    kernels.backward_q[pieces(order.shape[0], "M")](
        *(q, k, v, out, d_out, lse, dq, delta),
        *map(strides, (q, k, v, out, d_out, dq)),
        *descriptors,
        *(order, offsets, indices, q_starts, k_starts),
        *(q.shape[1], q_starts.shape[0] - 1, q.shape[2], scale * LOG2E),
        **more,
    )
    order, offsets, indices = (x.contiguous() for x in transposed)
    kernels.backward_kv[pieces(order.shape[0], "N")](
        *(q, k, v, d_out, lse, delta, dk, dv),
        *map(strides, (q, k, v, d_out, dk, dv)),
        *descriptors,
        *(order, offsets, indices, q_starts, k_starts),
        *(q.shape[1], k_starts.shape[0] - 1, q.shape[2], scale * LOG2E),
        **more,
    )
    return dq, dk, dv


@backward.register_fake
def _(q, k, v, out, lse, d_out, q_starts, k_starts, lists, transposed, q_size, k_size, scale):
    return token_major(q), token_major(k), token_major(v)


def _remember(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, q_starts, k_starts, lists, transposed, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, *output, q_starts, k_starts, *lists, *transposed)
    ctx.lists = len(lists)


def _differentiate(ctx: Any, d_out: Tensor, d_lse: Tensor | None) -> tuple:
    q, k, v, out, lse, q_starts, k_starts, *both = ctx.saved_tensors
    lists, transposed = both[: ctx.lists], both[ctx.lists :]
    grads = backward(q, k, v, out, lse, d_out, q_starts, k_starts, lists, transposed, *ctx.numbers)
    return *grads, None, None, [None] * len(lists), [None] * len(transposed), None, None, None


attention.register_autograd(_differentiate, setup_context=_remember)
