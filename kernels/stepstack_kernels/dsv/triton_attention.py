"""Triton kernels of block-sparse attention: forward, dQ, and dK/dV.

A program owns one tile of BLOCK_M queries (forward, dQ) or BLOCK_N keys (dK/dV) and walks its list. Programs start in
the order of ``order``: longest list first, so that no long list is left for the end. The next block's bounds are read
one iteration ahead. Scores are scaled in float32, never an operand; exponentials are base 2, as is the saved
log-sum-exp.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stepstack_kernels.dsv.tiles import autotuned, bounds, config, dot, load_tile, store_tile

LOG2E = tl.constexpr(1.4426950408889634)

FORWARD = [
    config(64, 64, 4, 3),
    config(64, 64, 4, 2),
    config(64, 32, 4, 2),
    config(64, 128, 4, 2),
    config(128, 64, 8, 3),
    config(128, 64, 8, 2),
    config(128, 128, 8, 2),
    config(64, 64, 4, 3, tma=True),
    config(64, 128, 4, 2, tma=True),
    config(128, 64, 8, 3, tma=True),
    config(128, 128, 8, 2, tma=True),
    config(32, 32, 8, 2),  # float32 takes the 32 x 32 tiles, and only those
]
# The stationary tile is M in dQ and N in dK/dV; the other one is streamed.
DQ = [
    config(64, 64, 4, 2),
    config(64, 32, 4, 3),
    config(64, 32, 4, 2),
    config(128, 64, 8, 2),
    config(128, 32, 8, 2),
    config(64, 64, 4, 2, tma=True),
    config(128, 64, 8, 2, tma=True),
    config(32, 32, 8, 2),
]
DKV = [
    config(64, 64, 8, 2),
    config(32, 64, 4, 3),
    config(32, 64, 4, 2),
    config(64, 128, 8, 2),
    config(32, 128, 8, 2),
    config(64, 64, 4, 2, tma=True),
    config(64, 128, 8, 2, tma=True),
    config(32, 32, 8, 2),
]


@triton.jit
def place(order, offsets, starts, blocks, heads, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Batch, head, first token and end of this program's tile, and the begin and end of its list."""
    PIECES: tl.constexpr = (TILE + BLOCK - 1) // BLOCK
    row = tl.load(order + tl.program_id(0) // PIECES)
    head, block, part = row // blocks, row % blocks, tl.program_id(0) % PIECES
    first, stop = tl.load(starts + block) + part * BLOCK, tl.load(starts + block + 1)
    begin, end = tl.load(offsets + row).to(tl.int32), tl.load(offsets + row + 1).to(tl.int32)
    return head // heads, head % heads, first, stop, begin, end


@triton.jit
def online_softmax(score, value, best, total, acc, UPCAST: tl.constexpr):
    """Running maximum [M], sum of exponentials [M] and weighted sum of values [M, D] after one more tile of keys."""
    higher = tl.maximum(best, tl.max(score, 1))
    p = tl.exp2(score - higher[:, None])
    fade = tl.exp2(best - higher)
    total = total * fade + tl.sum(p, 1)
    acc = dot(p.to(value.dtype), value, acc * fade[:, None], UPCAST)
    return higher, total, acc


@triton.jit
def row_terms(out, d_out, lse, delta, line, mine):
    """Log-sum-exp [M] of the tile's queries, and sum of do * o over D [M], which is stored in ``delta``."""
    log_sum = tl.load(lse + line, mask=mine, other=0.0)
    dot_out = tl.sum(d_out.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta + line, dot_out, mask=mine)
    return log_sum, dot_out


@triton.jit
def add_q_gradient(query, d_out, key, value, inside, log_sum, dot_out, acc, scale, UPCAST: tl.constexpr):
    """dq [M, D] after one more tile of keys, of which those ``inside`` [N] count."""
    score = dot(query, tl.trans(key), None, UPCAST) * scale
    p = tl.exp2(tl.where(inside[None, :], score, float("-inf")) - log_sum[:, None])
    d_score = p * (dot(d_out, tl.trans(value), None, UPCAST) - dot_out[:, None])
    return dot(d_score.to(key.dtype), key, acc, UPCAST)


@triton.jit
def add_kv_gradients(key, value, query, d_out, log_sum, dot_out, d_key, d_value, scale, UPCAST: tl.constexpr):
    """dk and dv [N, D] after one more tile of queries."""
    score = dot(key, tl.trans(query), None, UPCAST) * scale
    p = tl.exp2(score - log_sum[None, :])
    d_value = dot(p.to(d_out.dtype), d_out, d_value, UPCAST)
    d_score = p * (dot(value, tl.trans(d_out), None, UPCAST) - dot_out[None, :])
    return dot(d_score.to(query.dtype), query, d_key, UPCAST), d_value


@autotuned(FORWARD)
@triton.jit
def forward(
    q,
    k,
    v,
    o,
    lse,
    q_stride,
    k_stride,
    v_stride,
    o_stride,
    q_desc,
    k_desc,
    v_desc,
    order,
    offsets,
    indices,
    q_starts,
    k_starts,
    heads,
    q_blocks,
    tokens,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
):
    """Output o [B, H, S, D] and lse [B, H, S] (base 2; 0 where a query sees nothing)."""
    M: tl.constexpr = BLOCK_M if BLOCK_M < TILE_M else TILE_M
    N: tl.constexpr = BLOCK_N if BLOCK_N < TILE_N else TILE_N
    PIECES: tl.constexpr = (TILE_N + N - 1) // N
    b, h, first, stop, begin, end = place(order, offsets, q_starts, q_blocks, heads, TILE_M, M)
    if first >= stop:
        return
    query = load_tile(q, q_stride, q_desc, b, h, first, stop, D, M, BLOCK_D, TMA)
    best = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    at, over = bounds(k_starts, indices, begin, end, 0, N)
    for j in range((end - begin) * PIECES):
        key = load_tile(k, k_stride, k_desc, b, h, at, over, D, N, BLOCK_D, TMA)
        value = load_tile(v, v_stride, v_desc, b, h, at, over, D, N, BLOCK_D, TMA)
        inside = tl.arange(0, N) < over - at
        at, over = bounds(k_starts, indices, begin + (j + 1) // PIECES, end, (j + 1) % PIECES, N)
        score = dot(query, tl.trans(key), None, UPCAST) * scale
        score = tl.where(inside[None, :], score, float("-inf"))
        best, total, acc = online_softmax(score, value, best, total, acc, UPCAST)
    attends = end > begin
    total = tl.where(attends, total, 1.0)
    acc = acc / total[:, None]
    store_tile(o, o_stride, acc, b, h, first, stop, D, M, BLOCK_D)
    out = (b * heads + h).to(tl.int64) * tokens + first + tl.arange(0, M)
    tl.store(lse + out, tl.where(attends, best + tl.log2(total), 0.0), mask=tl.arange(0, M) < stop - first)


@autotuned(DQ)
@triton.jit
def backward_q(
    q,
    k,
    v,
    o,
    do,
    lse,
    dq,
    delta,
    q_stride,
    k_stride,
    v_stride,
    o_stride,
    do_stride,
    dq_stride,
    q_desc,
    k_desc,
    v_desc,
    do_desc,
    order,
    offsets,
    indices,
    q_starts,
    k_starts,
    heads,
    q_blocks,
    tokens,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
):
    """Gradient dq [B, H, S, D], and delta [B, H, S] = sum of do * o over D, which dK/dV needs as well."""
    M: tl.constexpr = BLOCK_M if BLOCK_M < TILE_M else TILE_M
    N: tl.constexpr = BLOCK_N if BLOCK_N < TILE_N else TILE_N
    PIECES: tl.constexpr = (TILE_N + N - 1) // N
    b, h, first, stop, begin, end = place(order, offsets, q_starts, q_blocks, heads, TILE_M, M)
    if first >= stop:
        return
    query = load_tile(q, q_stride, q_desc, b, h, first, stop, D, M, BLOCK_D, TMA)
    d_out = load_tile(do, do_stride, do_desc, b, h, first, stop, D, M, BLOCK_D, TMA)
    out = load_tile(o, o_stride, None, b, h, first, stop, D, M, BLOCK_D, False)
    line = (b * heads + h).to(tl.int64) * tokens + first + tl.arange(0, M)
    mine = tl.arange(0, M) < stop - first
    log_sum, dot_out = row_terms(out, d_out, lse, delta, line, mine)
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    at, over = bounds(k_starts, indices, begin, end, 0, N)
    for j in range((end - begin) * PIECES):
        key = load_tile(k, k_stride, k_desc, b, h, at, over, D, N, BLOCK_D, TMA)
        value = load_tile(v, v_stride, v_desc, b, h, at, over, D, N, BLOCK_D, TMA)
        inside = tl.arange(0, N) < over - at
        at, over = bounds(k_starts, indices, begin + (j + 1) // PIECES, end, (j + 1) % PIECES, N)
        acc = add_q_gradient(query, d_out, key, value, inside, log_sum, dot_out, acc, scale, UPCAST)
    store_tile(dq, dq_stride, acc * (scale / LOG2E), b, h, first, stop, D, M, BLOCK_D)


@autotuned(DKV)
@triton.jit
def backward_kv(
    q,
    k,
    v,
    do,
    lse,
    delta,
    dk,
    dv,
    q_stride,
    k_stride,
    v_stride,
    do_stride,
    dk_stride,
    dv_stride,
    q_desc,
    k_desc,
    v_desc,
    do_desc,
    order,
    offsets,
    indices,
    q_starts,
    k_starts,
    heads,
    k_blocks,
    tokens,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
):
    """Gradients dk, dv [B, H, T, D] by transposed lists: ``indices`` of query blocks that see a key block."""
    M: tl.constexpr = BLOCK_M if BLOCK_M < TILE_M else TILE_M
    N: tl.constexpr = BLOCK_N if BLOCK_N < TILE_N else TILE_N
    PIECES: tl.constexpr = (TILE_M + M - 1) // M
    b, h, first, stop, begin, end = place(order, offsets, k_starts, k_blocks, heads, TILE_N, N)
    if first >= stop:
        return
    key = load_tile(k, k_stride, k_desc, b, h, first, stop, D, N, BLOCK_D, TMA)
    value = load_tile(v, v_stride, v_desc, b, h, first, stop, D, N, BLOCK_D, TMA)
    d_key = tl.zeros([N, BLOCK_D], tl.float32)
    d_value = tl.zeros([N, BLOCK_D], tl.float32)
    line = (b * heads + h).to(tl.int64) * tokens + tl.arange(0, M)
    at, over = bounds(q_starts, indices, begin, end, 0, M)
    for j in range((end - begin) * PIECES):
        query = load_tile(q, q_stride, q_desc, b, h, at, over, D, M, BLOCK_D, TMA)
        d_out = load_tile(do, do_stride, do_desc, b, h, at, over, D, M, BLOCK_D, TMA)
        inside = tl.arange(0, M) < over - at
        log_sum = tl.load(lse + line + at, mask=inside, other=float("inf"))  # a query that is not there: p = 0
        dot_out = tl.load(delta + line + at, mask=inside, other=0.0)
        at, over = bounds(q_starts, indices, begin + (j + 1) // PIECES, end, (j + 1) % PIECES, M)
        d_key, d_value = add_kv_gradients(key, value, query, d_out, log_sum, dot_out, d_key, d_value, scale, UPCAST)
    store_tile(dk, dk_stride, d_key * (scale / LOG2E), b, h, first, stop, D, N, BLOCK_D)
    store_tile(dv, dv_stride, d_value, b, h, first, stop, D, N, BLOCK_D)
