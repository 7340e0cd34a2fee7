"""Context parallelism of VideoDiT: a group of ranks shares one video, each holding a part of its tokens.

Only self-attention looks at other tokens. There heads are exchanged for tokens and back (DeepSpeed-Ulysses, arXiv
2309.14509; so does Step-Video where it uses context parallelism, arXiv 2502.10248). Everything else is done a token at
a time, on the shard. The model's input and output stay whole, on every rank of the group.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from stepstack.models.video.dit import Dense, Rotary, SelfAttention, VideoDiT, merge_heads
from stepstack.parallel import exchange
from stepstack.parallel.exchange import Moved


def context_parallel(dit: VideoDiT, size: int) -> AbstractContextManager:
    """``Context`` of a model, or a context that does nothing for a size of 1."""
    return Context(dit, size) if size > 1 else nullcontext()


class Context:
    """Group of ``size`` consecutive ranks of the world that share a video.

    All ranks create it together. Inside of ``with context`` the ranks of a group must call the model together with the
    same input; outside of it each calls the model for itself. Each rank has the loss of the whole output, so loss and
    gradients summed over ranks are ``size`` times those of one process. ValueError where ranks or heads do not divide,
    or where attention is not dense.
    """

    def __init__(self, dit: VideoDiT, size: int):
        ranks, heads = dist.get_world_size(), dit.config["heads"]
        if ranks % size or heads % size:
            raise ValueError(f"{ranks} ranks, {heads} heads: both must be multiples of the {size} that share a video")
        groups = [dist.new_group(list(range(first, first + size))) for first in range(0, ranks, size)]
        self.group = groups[dist.get_rank() // size]
        self.rank, self.size = dist.get_rank(self.group), size
        self.heads = [range(rank * heads // size, (rank + 1) * heads // size) for rank in range(size)]
        self.tokens: list[int] = []  # tokens of each rank in the running pass
        self.moved: Moved = Counter()
        self.on = False
        self._attach(dit)

    def __enter__(self) -> None:
        self.on = True

    def __exit__(self, *_: object) -> None:
        self.on = False

    def _attach(self, dit: VideoDiT) -> None:
        for module in dit.modules():
            if isinstance(module, SelfAttention):
                self._share(module)
        dit.patch.register_forward_pre_hook(self._cut_video)
        dit.rope.register_forward_hook(self._cut_rotary)
        dit.out.register_forward_hook(self._join)

    def _share(self, attention: SelfAttention) -> None:
        if type(attention.processor) is not Dense:
            raise ValueError(f"{type(attention.processor).__name__} attends here: context parallelism needs Dense")
        attention.set_processor(Ulysses(self))

    def _cut_video(self, module: Any, args: tuple[Tensor]) -> tuple[Tensor] | None:
        if not self.on:
            return None
        count = args[0].shape[1]
        self.tokens = [count * (rank + 1) // self.size - count * rank // self.size for rank in range(self.size)]
        return (self._mine(args[0], 1),)

    def _cut_rotary(self, module: Any, args: Any, rotary: Rotary) -> Rotary | None:
        return (self._mine(rotary[0], 0), self._mine(rotary[1], 0)) if self.on else None

    def _join(self, module: Any, args: Any, out_BsC: Tensor) -> Tensor | None:
        return exchange.gather_shards(out_BsC, self.tokens, self.group, self.moved) if self.on else None

    def _mine(self, x: Tensor, dim: int) -> Tensor:
        return x.split(self.tokens, dim)[self.rank]


class Ulysses(Dense):
    """``Dense`` attention of a shard: each rank attends with its heads over all tokens of the video."""

    def __init__(self, context: Context):
        super().__init__()
        self.context = context

    def forward(self, attn: SelfAttention, x_BsD: Tensor, rotary: Rotary) -> Tensor:
        context = self.context
        if not context.on:
            return super().forward(attn, x_BsD, rotary)
        q, k, v = attn.project(x_BsD, rotary)
        same = (q.to(v.dtype), k.to(v.dtype), v)  # as attention itself would cast them under autocast
        tokens = [(n, n, n) for n in context.tokens]
        q, k, v = exchange.to_heads(same, context.heads, tokens, context.group, context.moved)
        out_BhSE = F.scaled_dot_product_attention(q, k, v)
        out_BNsE = exchange.to_tokens(out_BhSE, context.heads, context.tokens, context.group, context.moved)
        return attn.to_out(merge_heads(out_BNsE))
