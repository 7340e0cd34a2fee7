"""Block-sparse attention written down once more, from the lists and in float64, and random selections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepstack.ops.attention import sparse_attention
from stepstack.ops.selection import Blocks, Selection


def attention(q: Tensor, k: Tensor, v: Tensor, selection: Selection, scale: float) -> Tensor:
    """One query block at a time, over the tokens of its list; where there is no list, 0."""
    batch, heads, _, _ = q.shape
    q_starts, k_starts = selection.queries.starts.tolist(), selection.keys.starts.tolist()
    offsets, indices = selection.offsets.tolist(), selection.indices.tolist()
    rows, row = [], 0
    for b in range(batch):
        for h in range(heads):
            for i in range(selection.queries.count):
                masks = [
                    t for j in indices[offsets[row] : offsets[row + 1]] for t in range(k_starts[j], k_starts[j + 1])
                ]
                query = q[b, h, q_starts[i] : q_starts[i + 1]]
                p = torch.softmax(scale * query @ k[b, h, masks].T, dim=-1)
                rows.append(p @ v[b, h, masks] if masks else query * 0)
                row += 1
    return torch.cat(rows).view(batch, heads, q_starts[-1], v.shape[-1])


def ragged(tokens: int, size: int, seed: int) -> Blocks:
    """Blocks of random lengths from 1 to ``size``."""
    random = torch.Generator().manual_seed(seed)
    starts = [0]
    while starts[-1] < tokens:
        starts.append(min(tokens, starts[-1] + int(torch.randint(1, size + 1, (), generator=random))))
    return Blocks(torch.tensor(starts, dtype=torch.int32), size)


def choose(
    queries: Blocks, keys: Blocks, batch: int = 1, heads: int = 2, density: float = 0.4, seed: int = 0
) -> Selection:
    """Random lists, of which the first query block's is empty, the second's holds all blocks and the third's one."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, heads, queries.count, keys.count, generator=random) < density
    mask[:, :, 0] = False
    mask[:, :, min(1, queries.count - 1)] = True
    if queries.count > 2:
        mask[:, :, 2] = False
        mask[:, :, 2, keys.count // 2] = True
    return Selection.from_mask(mask, queries, keys)


@dataclass(frozen=True)
class Errors:
    """Of o, dq, dk and dv against the oracle: relative L2 error, and the ratio of the norms."""

    relative: list[float]
    ratios: list[float]


def to(selection: Selection, device: str) -> Selection:
    queries, keys = (Blocks(b.starts.to(device), b.size) for b in (selection.queries, selection.keys))
    lists = selection.offsets.to(device), selection.indices.to(device)
    return Selection(queries, keys, selection.batch, selection.heads, *lists)


def inputs(selection: Selection, dim: int, dtype: torch.dtype, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    lengths = [selection.queries.tokens, selection.keys.tokens, selection.keys.tokens, selection.queries.tokens]
    shape, scales = (selection.batch, selection.heads), (scale, scale, scale, 1.0)
    return [(torch.randn(*shape, n, dim, generator=random) * s).to(dtype) for n, s in zip(lengths, scales, strict=True)]


def compare(selection: Selection, tensors: list[Tensor], impl: str, device: str = "cpu") -> Errors:
    """Forward and backward of the op, on ``device``, against the oracle in float64 on the same values."""
    *qkv, d_out = tensors
    inputs = [x.to(device).detach().requires_grad_() for x in qkv]
    out = sparse_attention(*inputs, to(selection, device), impl=impl)
    out.backward(d_out.to(device))
    exact = [x.double().detach().requires_grad_() for x in qkv]
    wanted = attention(*exact, selection, qkv[0].shape[-1] ** -0.5)
    wanted.backward(d_out.double())
    pairs = [(out, wanted), *((a.grad, b.grad) for a, b in zip(inputs, exact, strict=True))]
    pairs = [(a.detach().double().cpu(), b.detach()) for a, b in pairs]
    return Errors([float((a - b).norm() / b.norm()) for a, b in pairs], [float(a.norm() / b.norm()) for a, b in pairs])
