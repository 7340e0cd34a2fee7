"""Triton kernels of selection: block means, block scores from low-rank keys, and the top blocks of each row."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepstack_kernels.dsv.tiles import dot, interpreted, load_tile, power, rows_dense, strides


@triton.jit
def mean_kernel(x, stride, starts, means, heads, blocks, D: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr):
    """Means [B, H, blocks, D] of the tokens of each block, float32."""
    row = tl.program_id(0).to(tl.int64)
    head, block = row // blocks, row % blocks
    first, stop = tl.load(starts + block), tl.load(starts + block + 1)
    tile = load_tile(x, stride, None, head // heads, head % heads, first, stop, D, TILE, BLOCK_D, False)
    mean = tl.sum(tile.to(tl.float32), 0) / (stop - first)
    col = tl.arange(0, BLOCK_D)
    tl.store(means + row * D + col, mean, mask=col < D)


@triton.jit
def score_kernel(
    proxies,
    k,
    k_stride,
    starts,
    scores,
    heads,
    q_blocks,
    k_blocks,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    RUN: tl.constexpr,
):
    """Scores [B*H, q_blocks, k_blocks]: log2 of the sum over a key block of 2^(scale proxy . key).

    A program does ROWS proxies and RUN key blocks. Only one [ROWS, TILE] of token scores exists at a time.
    """
    head = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK_D)
    inside = (rows < q_blocks)[:, None] & (col < D)[None, :]
    proxy = tl.load(proxies + (head * q_blocks + rows)[:, None] * D + col[None, :], mask=inside, other=0.0)
    for block in range(tl.program_id(2) * RUN, min((tl.program_id(2) + 1) * RUN, k_blocks)):
        first, stop = tl.load(starts + block), tl.load(starts + block + 1)
        key = load_tile(k, k_stride, None, head // heads, head % heads, first, stop, D, TILE, BLOCK_D, False)
        score = dot(proxy, tl.trans(key.to(tl.float32)), None, False) * scale
        score = tl.where((tl.arange(0, TILE) < stop - first)[None, :], score, float("-inf"))
        best = tl.max(score, 1)
        mass = best + tl.log2(tl.sum(tl.exp2(score - best[:, None]), 1))
        tl.store(scores + (head * q_blocks + rows) * k_blocks + block, mass, mask=rows < q_blocks)


@triton.jit
def rank_bits(scores, at, length, SPAN: tl.constexpr):
    """Integers int32 in the order of the float32 scores. Places past ``length`` rank last, and -0 equals 0."""
    place = at + tl.arange(0, SPAN)
    value = tl.load(scores + place, mask=place < length, other=float("-inf")) + 0.0
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(place < length, bits, -0x80000000)


@triton.jit
def at_least(scores, edge, length, SPAN: tl.constexpr):
    """Number of scores of a row that rank at ``edge`` or higher."""
    count = tl.zeros([SPAN], tl.int32)
    for at in range(0, length, SPAN):
        count += (rank_bits(scores, at, length, SPAN) >= edge).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def top_kernel(scores, keep, offsets, indices, length, SPAN: tl.constexpr):
    """Indices of the ``keep`` highest scores of a row, ties to the lowest index, written ascending.

    The keep-th value is built bit by bit, by counting. Nothing is sorted, and a row may be longer than a program holds.
    """
    row = tl.program_id(0).to(tl.int64)
    scores += row * length
    wanted = tl.load(keep + row)
    edge = tl.where(at_least(scores, 0, length, SPAN) >= wanted, 0, -0x80000000)  # the sign
    for bit in range(31):
        trial = edge + (1 << (30 - bit))
        edge = tl.where(at_least(scores, trial, length, SPAN) >= wanted, trial, edge)
    spare = wanted - at_least(scores, edge + 1, length, SPAN)  # of those equal to the edge
    out = indices + tl.load(offsets + row)
    for at in range(0, length, SPAN):
        bits = rank_bits(scores, at, length, SPAN)
        place = at + tl.arange(0, SPAN)
        equal = ((bits == edge) & (place < length)).to(tl.int32)
        taken = ((bits > edge) | ((equal > 0) & (tl.cumsum(equal, 0) <= spare))).to(tl.int32)
        tl.store(out + tl.cumsum(taken, 0) - 1, place, mask=taken > 0)
        out += tl.sum(taken, 0)
        spare -= tl.sum(equal, 0)


@torch.library.custom_op("stepstack::block_means", mutates_args=())
def means(x: Tensor, starts: Tensor, size: int) -> Tensor:
    """Mean of each block's tokens, float32 [B, H, blocks, D]."""
    x, starts = rows_dense(x), starts.contiguous()
    batch, heads, _, dim = x.shape
    blocks = starts.shape[0] - 1
    out = torch.empty(batch, heads, blocks, dim, dtype=torch.float32, device=x.device)
    tile = {"D": dim, "BLOCK_D": power(dim), "TILE": power(size)}
    mean_kernel[(batch * heads * blocks,)](x, strides(x), starts, out, heads, blocks, **tile)
    return out


@means.register_fake
def _(x, starts, size):
    return torch.empty(*x.shape[:2], starts.shape[0] - 1, x.shape[3], dtype=torch.float32, device=x.device)


@torch.library.custom_op("stepstack::block_masses", mutates_args=())
def masses(proxies: Tensor, k: Tensor, starts: Tensor, size: int, scale: float) -> Tensor:
    """Attention mass of each key block for each proxy as log2 up to a constant, float32 [B, H, proxies, blocks]."""
    k, starts, proxies = rows_dense(k), starts.contiguous(), proxies.contiguous()
    batch, heads, rows, dim = proxies.shape
    blocks = starts.shape[0] - 1
    out = torch.empty(batch, heads, rows, blocks, dtype=torch.float32, device=k.device)
    side, run = 64, 32
    grid = (batch * heads, triton.cdiv(rows, side), triton.cdiv(blocks, run))
    tile: dict[str, Any] = {"D": dim, "BLOCK_D": power(dim), "TILE": power(size), "ROWS": side, "RUN": run}
    score_kernel[grid](proxies, k, strides(k), starts, out, heads, rows, blocks, scale * 1.4426950408889634, **tile)
    return out


@masses.register_fake
def _(proxies, k, starts, size, scale):
    return torch.empty(*proxies.shape[:3], starts.shape[0] - 1, dtype=torch.float32, device=k.device)


@torch.library.custom_op("stepstack::top_blocks", mutates_args=())
def top(scores: Tensor, keep: Tensor, offsets: Tensor, total: int) -> Tensor:
    """Columns of the ``keep`` [rows] highest scores of each row [rows, blocks], ascending, one after another, int32
    [total].

    ``offsets`` [rows + 1]: where the columns of each row begin.
    """
    rows, length = scores.shape
    indices = torch.empty(total, dtype=torch.int32, device=scores.device)
    span = min(power(length), 64 if interpreted else 2048)
    scores, keep, offsets = scores.contiguous(), keep.contiguous(), offsets.contiguous()
    top_kernel[(rows,)](scores, keep, offsets, indices, length, SPAN=span)
    return indices


@top.register_fake
def _(scores, keep, offsets, total):
    return torch.empty(total, dtype=torch.int32, device=scores.device)
