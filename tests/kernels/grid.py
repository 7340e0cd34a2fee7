"""Every configuration of the DSV kernels, built for a GPU that is not there."""

from __future__ import annotations

from itertools import product

import triton
from stepstack_kernels import ahead
from stepstack_kernels.dsv import triton_attention as kernels
from stepstack_kernels.dsv import triton_select as select
from stepstack_kernels.dsv.tiles import is_float32s, power

LISTS = {
    "forward": (kernels.forward, kernels.FORWARD),
    "backward_q": (kernels.backward_q, kernels.DQ),
    "backward_kv": (kernels.backward_kv, kernels.DKV),
}
TENSORS = ("q", "k", "v", "o", "do", "dq", "dk", "dv", "x")
FLOATS = ("lse", "delta", "means", "proxies", "scores")
INTS = ("order", "offsets", "indices", "q_starts", "k_starts", "starts", "keep")
COUNTS = ("heads", "blocks", "q_blocks", "k_blocks", "tokens", "length")


def cases(dtypes: tuple[str, ...], dims: tuple[int, ...], arches: tuple[int, ...]):
    """(kernel, number of the configuration, dtype, head dim, arch) of all that a device may try."""
    for name, dtype, dim, arch in product(LISTS, dtypes, dims, arches):
        for number, config in enumerate(LISTS[name][1]):
            tma = config.kwargs["TMA"]
            if is_float32s(config) != (dtype == "fp32") or (tma and (arch < 90 or dim != power(dim))):
                continue
            yield name, number, dtype, dim, arch


def types(names, dtype: str) -> dict:
    kinds = dict.fromkeys(TENSORS, f"*{dtype}") | dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(INTS, "*i32")
    kinds |= dict.fromkeys(COUNTS, "i32") | {"scale": "fp32"}
    return {n: ("i32",) * 3 if n.endswith("stride") else kinds[n] for n in names if n.endswith("stride") or n in kinds}


def build(name: str, number: int, dtype: str, dim: int, arch: int) -> ahead.Usage:
    """Blocks of 128 tokens, so that every tile is used whole."""
    kernel, configs = LISTS[name]
    config: triton.Config = configs[number]
    names = kernel.fn.arg_names
    arguments = types(names, dtype)
    constants = {"D": dim, "BLOCK_D": power(dim), "TILE_M": 128, "TILE_N": 128, "UPCAST": False, **config.kwargs}
    for desc in (n for n in names if n.endswith("_desc")):
        if config.kwargs["TMA"]:
            side = config.kwargs["BLOCK_M" if desc in ("q_desc", "do_desc") else "BLOCK_N"]
            arguments[desc] = f"tensordesc<{dtype}[1,1,{side},{power(dim)}]>"
        else:
            constants[desc] = None
    return ahead.build(kernel.fn, arguments, constants, _options(config), arch)


def _options(config: triton.Config) -> dict[str, int]:
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}


def build_selection(name: str, arch: int) -> ahead.Usage:
    kernel, constants = {
        "mean_kernel": (select.mean_kernel, {"D": 128, "BLOCK_D": 128, "TILE": 64}),
        "score_kernel": (select.score_kernel, {"D": 16, "BLOCK_D": 16, "TILE": 64, "ROWS": 64, "RUN": 32}),
        "top_kernel": (select.top_kernel, {"SPAN": 2048}),
    }[name]
    return ahead.build(kernel, types(kernel.arg_names, "bf16"), constants, {"num_warps": 4, "num_stages": 3}, arch)
