"""Sparse attention whose sequence is cut over ranks: it executes a plan of ``planning.contextparallel`` by collectives.

Forward and backward follow DSV (arXiv 2502.07590, section 7). A rank passes its shard of q, k and v and the lists of
its own query blocks, and gets its shard of the output. In between, heads are exchanged for queries within a column of
the plan's grid (uneven all-to-all). Each rank then fetches within its row the blocks of keys and values that its
queries see and it lacks (selective gather, whose adjoint adds up gradients).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stepstack.ops.attention import sparse_attention
from stepstack.ops.selection import Blocks, Selection, offsets_of
from stepstack.parallel import exchange
from stepstack.parallel.exchange import Moved
from stepstack.planning.contextparallel.grid import LayerPlan
from stepstack.planning.contextparallel.plan import Plan
from stepstack.planning.contextparallel.problem import BlockLayout, Layer, Profile

Attend = Callable[[Tensor, Tensor, Tensor, Selection], Tensor]
_attend = partial(sparse_attention, check=False)  # the lists were checked whole, before they were cut


class Groups:
    """Process groups of a plan.

    All ranks of ``group`` (default: the world) create them at the same time, in the order of their ranks' shards. They
    live as long as the plan. ``moved``: bytes to and from other ranks so far, by (what, pass, direction), that is
    "hcp", "scp" or "lists", "forward" or "backward", "sent" or "received". ``before``: groups of an earlier plan of the
    same ranks, whose process groups and counts are continued. ValueError on every rank if the number of ranks is not
    the plan's or if ranks have different plans.
    """

    def __init__(self, plan: Plan, group: dist.ProcessGroup | None = None, before: Groups | None = None):
        plan.check()
        world = dist.group.WORLD if group is None else group
        if world is None:
            raise ValueError("there are no process groups: call torch.distributed.init_process_group first")
        self.plan, self.world = plan, world
        self.members = dist.get_process_group_ranks(self.world)
        self.rank = dist.get_rank(self.world)
        if len(self.members) != plan.layout.ranks:
            raise ValueError(f"the plan is for {plan.layout.ranks} ranks, the process group has {len(self.members)}")
        self.check_agreement(None, plan.digest, "plan; make it once and send it to all, or from the same profile")
        self.moved: Moved = Counter() if before is None else before.moved
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {} if before is None else before._groups
        self._groups[tuple(range(len(self.members)))] = self.world
        for layer in plan.layers:  # every rank in the same order, else two could wait for each other
            self.column(layer)
            self.row(layer)

    def column(self, layer: LayerPlan) -> dist.ProcessGroup:
        """Ranks that exchange heads for queries with this one. A rank's number in it is its row."""
        return self._group([row[layer.place(self.rank)[1]] for row in layer.grid])

    def row(self, layer: LayerPlan) -> dist.ProcessGroup:
        """Ranks with the same heads as this one. A rank's number in it is its column."""
        return self._group(layer.grid[layer.place(self.rank)[0]])

    def check_agreement(self, error: str | None, same: Any, what: str) -> None:
        """Collective check: if a rank has an error, or ranks differ in ``same``, all raise ValueError."""
        answers: list[Any] = [None] * len(self.members)
        dist.all_gather_object(answers, (error, same), group=self.world)
        for rank, (text, _) in enumerate(answers):
            if text is not None:
                raise ValueError(f"context parallelism, rank {rank}: {text}")
        for rank, (_, value) in enumerate(answers):
            if value != answers[0][1]:
                raise ValueError(
                    f"context parallelism, ranks 0 and {rank}: {answers[0][1]} and {value}: not the same {what}"
                )

    def _group(self, ranks: Sequence[int]) -> dist.ProcessGroup:
        key = tuple(ranks)
        if key not in self._groups:
            there = [self.members[rank] for rank in key]
            self._groups[key] = dist.new_group(there, use_local_synchronization=True)
        return self._groups[key]


def parallel_attention(
    q_BHsD: Tensor,
    k_BHtD: Tensor,
    v_BHtD: Tensor,
    selection: Selection,
    layer: int,
    groups: Groups,
    *,
    attend: Attend = _attend,
    check: bool = True,
) -> Tensor:
    """Shard of the output on this rank, o_BHsD. It is a collective of all ranks, and so is its backward.

    ``selection``: lists of the query blocks of this rank's shard, over the key blocks of the whole sequence. ``layer``:
    number of the layer in the plan. ``check``: ranks first tell each other whether all arguments fit; if not, all raise
    one ValueError. Without it a bad argument on one rank can leave the others waiting.
    """
    if check:
        same = (layer, tuple(q_BHsD.shape[:2]), q_BHsD.shape[-1], str(q_BHsD.dtype), _learns(q_BHsD, k_BHtD, v_BHtD))
        error = _error(q_BHsD, k_BHtD, v_BHtD, selection, layer, groups)
        groups.check_agreement(error, same, "call (layer, batch and heads, dim, dtype, whether it learns)")
    step = groups.plan.layers[layer]
    lists = selection.offsets.diff(), selection.indices
    q, k, v = q_BHsD, k_BHtD, v_BHtD
    if step.hcp > 1:
        shards = [(s, t, t) for s, t in (_tokens(groups, rank) for rank in _column(step, groups))]
        q, k, v = exchange.to_heads((q, k, v), step.heads, shards, groups.column(step), groups.moved)
        lists = _lists_to_heads(selection, step, groups)
    local = _local(lists, step, selection.keys, q, groups)
    out = attend(q, k, v, local) if step.scp == 1 else _gathered(q, k, v, local, step, groups, attend)
    if step.hcp == 1:
        return out
    tokens = [_tokens(groups, rank)[0] for rank in _column(step, groups)]
    return exchange.to_tokens(out, step.heads, tokens, groups.column(step), groups.moved)


def profile_from_selections(selections: Sequence[Selection], ranks: int, head_dim: int, element_bytes: int) -> Profile:
    """Profile to plan from, for the whole selections of all layers, which share their blocks."""
    first = selections[0]
    layout = BlockLayout(tuple(first.queries.lengths.tolist()), tuple(first.keys.lengths.tolist()), ranks)
    layers = tuple(Layer.from_mask(selection.mask().cpu().numpy(), layout) for selection in selections)
    return Profile(layout=layout, head_dim=head_dim, layers=layers, element_bytes=element_bytes)


def shard_selection(selection: Selection, layout: BlockLayout, rank: int) -> Selection:
    """Lists of a rank's own query blocks, taken from the lists of all."""
    mine = layout.blocks("queries", rank)
    device = selection.indices.device
    rows = torch.arange(selection.rows, device=device).view(-1, selection.queries.count)[:, mine.start : mine.stop]
    counts, indices = _take(selection.offsets.diff(), selection.indices, rows.flatten())
    queries = _blocks(selection.queries.lengths[mine.start : mine.stop], selection.queries.size)
    return Selection(queries, selection.keys, selection.batch, selection.heads, offsets_of(counts), indices)


# -- lists follow their heads ------------------------------------------------------------------------------------------


def _lists_to_heads(selection: Selection, step: LayerPlan, groups: Groups) -> tuple[Tensor, Tensor]:
    """Lists of the row's heads for the column's query blocks: their lengths, ordered by (batch, head, block), and
    contents."""
    device, batch, count = selection.indices.device, selection.batch, selection.queries.count
    column, heads = groups.column(step), step.heads[step.place(groups.rank)[0]]
    order = torch.tensor([head for row in step.heads for head in row], device=device)
    rows = torch.arange(selection.rows, device=device).view(batch, -1, count).transpose(0, 1)[order]
    counts, indices = _take(selection.offsets.diff(), selection.indices, rows.flatten())
    blocks = [len(groups.plan.layout.blocks("queries", rank)) for rank in _column(step, groups)]
    sent = [len(row) * batch * count for row in step.heads]
    received = [len(heads) * batch * there for there in blocks]
    lengths = exchange.all_to_all(counts, sent, received, column, groups.moved, "lists")
    lists_sent = [int(part.sum()) for part in counts.split(sent)]
    lists_received = [int(part.sum()) for part in lengths.split(received)]
    contents = exchange.all_to_all(indices, lists_sent, lists_received, column, groups.moved, "lists")
    places = torch.arange(len(lengths), device=device).split(received)  # ordered by (shard, head, batch, block)
    shaped = [part.view(len(heads), batch, there) for part, there in zip(places, blocks, strict=True)]
    return _take(lengths, contents, torch.cat(shaped, dim=2).transpose(0, 1).flatten())


def _local(lists: tuple[Tensor, Tensor], step: LayerPlan, keys: Blocks, q: Tensor, groups: Groups) -> Selection:
    """Selection of this rank's heads and its column's query blocks, still over all key blocks."""
    counts, indices = lists
    layout = groups.plan.layout
    sizes = [layout.queries[block] for rank in _column(step, groups) for block in layout.blocks("queries", rank)]
    queries = _blocks(torch.tensor(sizes, dtype=torch.int32, device=q.device), max(sizes))
    return Selection(queries, keys, q.shape[0], q.shape[1], offsets_of(counts), indices)


# -- keys and values that are elsewhere --------------------------------------------------------------------------------


def _gathered(
    q: Tensor, k: Tensor, v: Tensor, local: Selection, step: LayerPlan, groups: Groups, attend: Attend
) -> Tensor:
    """Attention of the row's heads, with the listed blocks fetched that this rank lacks.

    Heads need different blocks. So that none is padded, samples and heads are laid end to end as one sequence. Its keys
    are first those held here, for all heads, then those of each other column in the order of arrival.
    """
    layout, place, device = groups.plan.layout, step.place(groups.rank)[1], q.device
    batch, heads, _, dim = q.shape
    owned = [
        torch.tensor([b for row in step.grid for b in layout.blocks("keys", row[column])], device=device)
        for column in range(step.scp)
    ]
    lengths = torch.tensor(layout.keys, device=device)
    row_of = local.row_of // local.queries.count  # (batch, head) of each entry
    need = torch.zeros(batch * heads, len(layout.keys), dtype=torch.bool, device=device)
    need[row_of, local.indices.long()] = True
    need[:, owned[place]] = False  # held already
    requests = [need[:, blocks] for blocks in owned]  # of each column: [B h, its blocks]
    wanted = _asked_of_me(requests, len(owned[place]), groups.row(step), groups.moved)
    own_lengths = lengths[owned[place]]
    sent = [_tokens_of(part, own_lengths) for part in wanted]
    counts = [int((part * lengths[blocks]).sum()) for part, blocks in zip(requests, owned, strict=True)]
    k, v = k.reshape(-1, dim), v.reshape(-1, dim)  # [B h T, D]
    tokens = torch.cat(sent)
    fetched = exchange.AllToAll.apply(
        torch.cat([k[tokens], v[tokens]], dim=-1).flatten(),
        [len(part) * 2 * dim for part in sent],
        [count * 2 * dim for count in counts],
        groups.row(step),
        groups.moved,
        "scp",
    ).view(-1, 2 * dim)
    k, v = (torch.cat([here, there]) for here, there in zip((k, v), fetched.split(dim, dim=-1), strict=True))
    selection = _renumbered(local, need, owned, place, lengths)
    out = attend(q.reshape(1, 1, -1, dim), k[None, None], v[None, None], selection)
    return out.reshape(q.shape)


def _asked_of_me(requests: list[Tensor], blocks: int, row: dist.ProcessGroup, moved: Moved) -> list[Tensor]:
    """Masks bool [B h, blocks] of this rank's ``blocks`` that each other column requests."""
    heads = requests[0].shape[0]
    sent = [part.numel() for part in requests]
    received = [heads * blocks] * len(requests)
    flags = torch.cat([part.flatten() for part in requests]).to(torch.uint8)
    flat = exchange.all_to_all(flags, sent, received, row, moved, "lists")
    return [part.view(heads, blocks).bool() for part in flat.split(received)]


def _tokens_of(wanted: Tensor, lengths: Tensor) -> Tensor:
    """Rows of [heads * tokens, ...] that hold the wanted blocks [heads, blocks] of so many tokens each."""
    head, block = wanted.nonzero(as_tuple=True)
    start = head * lengths.sum() + (lengths.cumsum(0) - lengths)[block]
    return _ranges(start, lengths[block])


def _renumbered(local: Selection, need: Tensor, owned: list[Tensor], place: int, lengths: Tensor) -> Selection:
    """The same lists as one head's over the blocks in their new order: those held here [B h, own], then the fetched
    ones."""
    heads, own, device = need.shape[0], owned[place], need.device
    number = torch.full_like(need, -1, dtype=torch.int64)
    number[:, own] = torch.arange(heads * len(own), device=device).view(heads, -1)
    sizes, first = [lengths[own].repeat(heads)], heads * len(own)
    for blocks in owned:
        head, block = need[:, blocks].nonzero(as_tuple=True)
        number[head, blocks[block]] = torch.arange(first, first + len(head), device=device)
        sizes.append(lengths[blocks[block]])
        first += len(head)
    row_of = local.row_of
    entries = number[row_of // local.queries.count, local.indices.long()]
    entries = (row_of * first + entries).sort().values - row_of * first  # rows stay, each ascends again
    queries = _blocks(local.queries.lengths.repeat(heads), local.queries.size)
    keys = _blocks(torch.cat(sizes), local.keys.size)
    return Selection(queries, keys, 1, 1, local.offsets, entries.int())


# -- lists and shards --------------------------------------------------------------------------------------------------


def _take(counts: Tensor, indices: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths and content of some lists, in the order of ``rows``."""
    taken = counts[rows]
    return taken, indices[_ranges((counts.cumsum(0) - counts)[rows], taken)]


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Concatenated ranges start, start + 1, ... of the given lengths."""
    offsets = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return starts.repeat_interleave(lengths) + torch.arange(len(offsets), device=lengths.device) - offsets


def _blocks(lengths: Tensor, size: int) -> Blocks:
    return Blocks(offsets_of(lengths), size)


def _column(step: LayerPlan, groups: Groups) -> list[int]:
    """Ranks whose queries this one has."""
    return [row[step.place(groups.rank)[1]] for row in step.grid]


def _tokens(groups: Groups, rank: int) -> tuple[int, int]:
    """Query and key tokens of a rank's shard."""
    layout = groups.plan.layout
    return len(layout.tokens("queries", rank)), len(layout.tokens("keys", rank))


# -- checking ----------------------------------------------------------------------------------------------------------


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _error(q: Tensor, k: Tensor, v: Tensor, selection: Selection, layer: int, groups: Groups) -> str | None:
    """Message about the first argument that does not fit on this rank, or None."""
    plan = groups.plan
    if not 0 <= layer < len(plan.layers):
        return f"layer {layer}: the plan has layers 0 to {len(plan.layers) - 1}"
    queries, keys = _tokens(groups, groups.rank)
    for name, x, tokens in (("q", q, queries), ("k", k, keys), ("v", v, keys)):
        if x.ndim != 4 or x.shape[1:] != (plan.heads, tokens, plan.head_dim):
            expected = f"[batch, {plan.heads} heads, {tokens} tokens of this rank's shard, {plan.head_dim}]"
            return f"{name} is {list(x.shape)}, the plan asks for {expected}"
        if x.shape[0] != q.shape[0] or x.dtype != q.dtype or x.device != selection.indices.device:
            return f"{name} is {x.dtype} {list(x.shape)} on {x.device}: q, k, v and the lists must agree"
    if (selection.batch, selection.heads) != tuple(q.shape[:2]):
        return f"the selection is for (batch, heads) {(selection.batch, selection.heads)}, q for {tuple(q.shape[:2])}"
    mine = plan.layout.blocks("queries", groups.rank)
    for name, blocks, sizes in (
        ("query", selection.queries, plan.layout.queries[mine.start : mine.stop]),
        ("key", selection.keys, plan.layout.keys),
    ):
        if tuple(blocks.lengths.tolist()) != sizes:
            actual = f"{blocks.count} of {blocks.tokens} tokens"
            return f"the selection's {name} blocks, {actual}, are not the plan's, {len(sizes)} of {sum(sizes)}"
    if len(selection.offsets) != selection.rows + 1 or int(selection.offsets[-1]) != len(selection.indices):
        return f"the selection has {len(selection.offsets)} offsets and {len(selection.indices)} indices"
    outside = selection.indices[(selection.indices < 0) | (selection.indices >= selection.keys.count)]
    if len(outside):
        return f"key block {int(outside[0])} is not among 0..{selection.keys.count - 1}"
    if bool(((selection.indices.diff() <= 0) & (selection.row_of.diff() == 0)).any()):
        return "key blocks of a list must ascend without duplicates"
    return None
