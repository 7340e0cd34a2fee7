"""Selection of key blocks: the highest-scoring ones of each query block, a fixed number per head.

Scores exist per pair of blocks, never per pair of tokens, and for a few heads at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from stepstack_kernels.dsv import reference
from torch import Tensor

from stepstack.ops.attention import Impl, resolve_impl
from stepstack.ops.selection import Blocks, Selection, offsets_of

MAX_SCORES = 1 << 26  # block scores held at once (256 MiB)


def pooled_selection(
    q_BHSE: Tensor, k_BHTE: Tensor, queries: Blocks, keys: Blocks, keep: Tensor | Sequence[int], *, impl: Impl = "auto"
) -> Selection:
    """Selection of the blocks whose mean key has the highest product with the mean query (VSA, arXiv 2505.13389,
    section 3).

    ``keep`` [H]: key blocks per query block, for each head. Ties go to the lower index. Needs no training.
    """
    keep_H, backend = _check(q_BHSE, k_BHTE, queries, keys, keep), resolve_impl(impl, q_BHSE)
    q_BHQE = block_means(q_BHSE, queries, backend)
    k_BHKE = block_means(k_BHTE, keys, backend)
    return _select(lambda b, h: q_BHQE[b, h] @ k_BHKE[b, h].mT, queries, keys, keep_H, q_BHSE, backend)


def low_rank_selection(
    q_BHSU: Tensor,
    k_BHTU: Tensor,
    queries: Blocks,
    keys: Blocks,
    keep: Tensor | Sequence[int],
    *,
    scale: float = 1.0,
    impl: Impl = "auto",
) -> Selection:
    """Selection of the blocks that hold most attention mass by low-rank queries and keys (DSV, arXiv 2502.07590,
    section 5).

    The mean query of a block stands for all of it, and a key block scores the log-sum-exp of ``scale`` q . k over its
    tokens. ``keep`` [H]: key blocks per query block, for each head. Ties go to the lower index. ``scale``: factor of
    the scores before the softmax, 1/sqrt(D) of the main attention for a predictor of its q k^T.
    """
    keep_H, backend = _check(q_BHSU, k_BHTU, queries, keys, keep), resolve_impl(impl, q_BHSU)
    proxies_BHQU = block_means(q_BHSU, queries, backend)

    def masses(b: slice, h: slice) -> Tensor:
        if backend == "reference":
            return reference.block_masses(proxies_BHQU[b, h], k_BHTU[b, h], keys.starts, scale)
        from stepstack_kernels.dsv import triton_select

        return triton_select.masses(proxies_BHQU[b, h], k_BHTU[b, h], keys.starts, keys.size, scale)

    return _select(masses, queries, keys, keep_H, q_BHSU, backend)


def block_means(x_BHSE: Tensor, blocks: Blocks, impl: Literal["reference", "triton"]) -> Tensor:
    """Mean of each block's tokens, float32 [B, H, blocks, E]."""
    x_BHSE = x_BHSE.detach()
    if impl == "reference":
        return reference.block_means(x_BHSE, blocks.block_of_token, blocks.lengths)
    from stepstack_kernels.dsv import triton_select

    return triton_select.means(x_BHSE, blocks.starts, blocks.size)


@torch.no_grad()
def _select(
    scores: Callable[[slice, slice], Tensor],
    queries: Blocks,
    keys: Blocks,
    keep_H: list[int],
    q: Tensor,
    backend: Literal["reference", "triton"],
) -> Selection:
    """Selection from scores of [1, a few heads, queries, keys] at a time."""
    batch, heads = q.shape[:2]
    keep_BHQ = torch.tensor(keep_H, dtype=torch.int32).to(q.device)[None, :, None].expand(batch, heads, queries.count)
    indices = []
    few = max(1, MAX_SCORES // (queries.count * keys.count))
    for b in range(batch):
        for h in range(0, heads, few):
            part = scores(slice(b, b + 1), slice(h, h + few)).flatten(0, 2)
            indices.append(
                top_blocks(part, keep_BHQ[b, h : h + few].flatten(), sum(keep_H[h : h + few]) * queries.count, backend)
            )
    return Selection(queries, keys, batch, heads, offsets_of(keep_BHQ.flatten()), torch.cat(indices))


def top_blocks(scores_RK: Tensor, keep_R: Tensor, total: int, impl: Literal["reference", "triton"]) -> Tensor:
    """Columns of the ``keep`` highest scores of each row, ascending, row after row, int32 [total = sum of keep].

    Ties go to the lower column.
    """
    if impl == "reference":
        return reference.top_blocks(scores_RK, keep_R)
    from stepstack_kernels.dsv import triton_select

    return triton_select.top(scores_RK, keep_R, offsets_of(keep_R), total)


def _check(q: Tensor, k: Tensor, queries: Blocks, keys: Blocks, keep: Tensor | Sequence[int]) -> list[int]:
    if q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q {list(q.shape)} and k {list(k.shape)} must be [batch, heads, tokens, dim], equal but for tokens"
        )
    for name, x, blocks in (("q", q, queries), ("k", k, keys)):
        if x.shape[2] != blocks.tokens or x.device != blocks.starts.device:
            where = f"{blocks.tokens} tokens on {blocks.starts.device}"
            raise ValueError(f"{name} has {x.shape[2]} tokens on {x.device}, its blocks {where}")
    keep_H = [int(n) for n in keep]
    if len(keep_H) != q.shape[1] or min(keep_H) < 1 or max(keep_H) > keys.count:
        raise ValueError(f"keep must be one number of 1..{keys.count} for each of {q.shape[1]} heads, not {keep_H}")
    return keep_H
