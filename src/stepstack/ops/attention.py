"""Block-sparse attention: the public call, its checks, and the choice between reference and kernel."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from typing import Literal

import torch
from stepstack_kernels.dsv import reference
from torch import Tensor

from stepstack.ops.selection import Selection

log = logging.getLogger(__name__)

Impl = Literal["auto", "reference", "triton"]


def sparse_attention(
    q_BHSE: Tensor,
    k_BHTE: Tensor,
    v_BHTE: Tensor,
    selection: Selection,
    *,
    scale: float | None = None,
    impl: Impl = "auto",
    check: bool = True,
) -> Tensor:
    """Attention over the selected key blocks only, o_BHSE (DSV, arXiv 2502.07590, section 5).

    ``scale`` of the scores: 1/sqrt(D) by default. ``impl``: "reference" is plain torch, "triton" the GPU kernels,
    "auto" the kernels where they run. ``check``: verify the selection's values the first time it is used, which waits
    for the device. Values cannot be verified inside torch.compile. ValueError for arguments that do not fit together.
    """
    check_layout(q_BHSE, k_BHTE, v_BHTE, selection)
    if check and not torch.compiler.is_compiling():
        selection.check()
        check_lengths(q_BHSE, k_BHTE, selection)
    scale = q_BHSE.shape[-1] ** -0.5 if scale is None else scale
    if resolve_impl(impl, q_BHSE) == "triton":
        return kernel_attention(q_BHSE, k_BHTE, v_BHTE, selection, scale)
    blocks = selection.queries.block_of_token, selection.keys.block_of_token
    return reference.sparse_attention(q_BHSE, k_BHTE, v_BHTE, selection.mask(), *blocks, scale)


def kernel_attention(q: Tensor, k: Tensor, v: Tensor, selection: Selection, scale: float) -> Tensor:
    """Attention by the Triton kernels. Gradients need the transposed lists, which are built only where they are
    used."""
    from stepstack_kernels.dsv import triton_op

    def lists(s: Selection) -> list[Tensor]:
        return [s.order, s.offsets, s.indices]

    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    out, _ = triton_op.attention(
        q,
        k,
        v,
        selection.queries.starts,
        selection.keys.starts,
        lists(selection),
        lists(selection.inverse) if differentiated else [],
        selection.queries.size,
        selection.keys.size,
        scale,
    )
    return out


def resolve_impl(impl: Impl, q: Tensor) -> Literal["reference", "triton"]:
    """Implementation that runs. ValueError if the requested one cannot."""
    if impl == "reference":
        return "reference"
    if impl not in ("auto", "triton"):
        raise ValueError(f"impl must be auto, reference or triton, not {impl!r}")
    obstacle = triton_obstacle(q.device.type, q.dtype, q.shape[-1])
    if impl == "triton":
        if obstacle:
            raise ValueError(f"impl='triton' cannot run: {obstacle}")
        return "triton"
    if not torch.compiler.is_compiling():
        log_choice("reference" if obstacle else "triton", obstacle or "a CUDA device and triton are there")
    return "reference" if obstacle else "triton"


def triton_obstacle(device: str, dtype: torch.dtype, dim: int) -> str | None:
    """Reason why the kernels cannot run, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'stepstack[gpu]'"
    from stepstack_kernels.dsv.tiles import interpreted

    if device != "cuda" and not interpreted:
        return f"the tensors are on {device}, the kernels need a CUDA device (or TRITON_INTERPRET=1, to test them)"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels take float32, float16 and bfloat16, not {dtype}"
    if dim > 128:
        return f"the kernels' tiles hold a head dim up to 128, not {dim}"
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return "the kernels need compute capability 8.0 or newer"
    return None


@cache
def log_choice(choice: str, why: str) -> None:
    """Log the chosen implementation, once for each choice and reason."""
    log.info("sparse attention: %s (%s)", choice, why)


def check_layout(q: Tensor, k: Tensor, v: Tensor, selection: Selection) -> None:
    """Raise ValueError for shapes, dtypes or devices that do not fit together, without waiting for the device."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} must be [batch, heads, tokens, dim], not {list(x.shape)}")
        if x.dtype != q.dtype or not x.is_floating_point():
            raise ValueError(f"q, k and v must have one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}")
        if x.device != selection.indices.device:
            raise ValueError(f"{name} is on {x.device}, the selection on {selection.indices.device}")
        if x.shape[:2] != (selection.batch, selection.heads):
            expected = [selection.batch, selection.heads]
            raise ValueError(f"the selection is for {expected} (batch, heads), {name} has {list(x.shape[:2])}")
    if k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} do not fit together")


def check_lengths(q: Tensor, k: Tensor, selection: Selection) -> None:
    """Raise ValueError for sequences that are not as long as their blocks."""
    for name, x, blocks in (("q", q, selection.queries), ("k", k, selection.keys)):
        if x.shape[2] != blocks.tokens:
            raise ValueError(f"{name} has {x.shape[2]} tokens, its blocks {blocks.tokens}")
