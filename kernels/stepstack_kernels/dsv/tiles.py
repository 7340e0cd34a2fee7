"""Common parts of the kernels: loading tiles of tokens, products that also work in the interpreter, and autotuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

interpreted: bool = triton.knobs.runtime.interpret


@triton.jit
def load_tile(
    x, stride, desc, b, h, first, stop, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TMA: tl.constexpr
):
    """Tile [ROWS, COLS] of x [B, H, tokens, D] from token ``first``. Tokens from ``stop`` on and columns from D on are
    0.

    With TMA, tokens from ``stop`` on are the next ones of the sequence, so scores must be masked.
    """
    if TMA:
        tile = desc.load([b, h, first, 0]).reshape(ROWS, COLS)
    else:
        row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
        base = x + b.to(tl.int64) * stride[0] + h.to(tl.int64) * stride[1] + first.to(tl.int64) * stride[2]
        inside = (row < stop - first)[:, None]
        if COLS > D:
            inside = inside & (col < D)[None, :]
        tile = tl.load(base + row[:, None] * stride[2] + col[None, :], mask=inside, other=0.0)
    return tile


@triton.jit
def store_tile(x, stride, tile, b, h, first, stop, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
    base = x + b.to(tl.int64) * stride[0] + h.to(tl.int64) * stride[1] + first.to(tl.int64) * stride[2]
    inside = (row < stop - first)[:, None] & (col < D)[None, :]
    tl.store(base + row[:, None] * stride[2] + col[None, :], tile.to(x.dtype.element_ty), mask=inside)


@triton.jit
def dot(a, b, acc, UPCAST: tl.constexpr):
    """Product acc + a b in float32; float32 operands as three TF32 products, which is nearly exact.

    UPCAST: the interpreter would multiply the bits of bfloat16 as integers.
    """
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32x3")


@triton.jit
def bounds(starts, indices, entry, end, part, SIZE: tl.constexpr):
    """First token and end of the ``part``-th piece of SIZE tokens of the block that a list's entry names."""
    block = tl.load(indices + entry, mask=entry < end, other=0)
    return tl.load(starts + block) + part * SIZE, tl.load(starts + block + 1)


def power(size: int) -> int:
    """Tile that holds ``size``: a power of two, at least 16 for the tensor cores."""
    return max(16, triton.next_power_of_2(size))


def strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


def rows_dense(x: Tensor) -> Tensor:
    """Tensor x, or its copy where a token's row is not contiguous or not aligned to 16 bytes, for TMA and wide
    loads."""
    unit = 16 // x.element_size()
    aligned = x.data_ptr() % 16 == 0 and all(s > 0 and s % unit == 0 for s in x.stride()[:-1])
    return x if x.stride(-1) == 1 and aligned else x.clone(memory_format=torch.contiguous_format)


def descriptor(x: Tensor) -> TensorDescriptor | None:
    """Descriptor for TMA loads; None where there is no TMA. The running configuration sets the tile's shape
    (``shape``)."""
    if x.device.type != "cuda" or torch.cuda.get_device_capability(x.device)[0] < 9:
        return None
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, 16, power(x.shape[-1])])


def config(m: int, n: int, warps: int, stages: int, tma: bool = False) -> triton.Config:
    kwargs = {"BLOCK_M": m, "BLOCK_N": n, "TMA": tma}
    return triton.Config(kwargs, num_warps=warps, num_stages=stages, pre_hook=shape)


def shape(args: dict[str, Any]) -> None:
    """Set the tile of the configuration in the descriptors, before a launch."""
    if args["TMA"]:
        sides = {"M": min(args["BLOCK_M"], args["TILE_M"]), "N": min(args["BLOCK_N"], args["TILE_N"])}
        for name, side in (("q_desc", "M"), ("do_desc", "M"), ("k_desc", "N"), ("v_desc", "N")):
            if name in args:
                args[name].block_shape = [1, 1, sides[side], args["BLOCK_D"]]


def usable(configs: Sequence[triton.Config], args: dict[str, Any], **more: Any) -> list[triton.Config]:
    """Configurations that differ once their tiles are cut to the blocks' size, and that suit dtype and device."""
    args = args | more
    distinct: dict[tuple, triton.Config] = {}
    tma = args["q_desc"] is not None and args["D"] == args["BLOCK_D"]
    for c in configs:
        if (c.kwargs["TMA"] and not tma) or is_float32s(c) != (args["q"].dtype == torch.float32):
            continue
        m, n = min(c.kwargs["BLOCK_M"], args["TILE_M"]), min(c.kwargs["BLOCK_N"], args["TILE_N"])
        distinct.setdefault((m, n, c.num_warps, c.num_stages, c.kwargs["TMA"]), c)
    return list(distinct.values())


def is_float32s(c: triton.Config) -> bool:
    """Whether a configuration is meant for float32.

    float32 needs twice the shared memory and three products for one, so larger tiles than 32 x 32 spill.
    """
    return c.kwargs["BLOCK_M"] * c.kwargs["BLOCK_N"] <= 32 * 32


def autotuned(configs: list[triton.Config]) -> Any:
    """Decorator that autotunes over a plain list. The interpreter, which cannot time, takes the first configuration."""
    key = ["D", "TILE_M", "TILE_N"]
    return triton.autotune(
        configs[:1] if interpreted else configs, key=key, prune_configs_by={"early_config_prune": usable}
    )
