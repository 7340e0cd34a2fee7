"""Context parallelism over gloo: the output and every gradient are those of one process, the bytes are the plan's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pytest
import torch

from stepstack.ops.attention import sparse_attention
from stepstack.ops.selection import Blocks, Selection
from stepstack.parallel.context import Groups, parallel_attention, profile_from_selections, shard_selection
from stepstack.planning import assignment
from stepstack.planning.contextparallel import plan as planner
from stepstack.planning.contextparallel.plan import Plan
from stepstack.planning.contextparallel.problem import BlockLayout, Cluster, Inner, PlanOptions
from stepstack.planning.timing import Attention, Link
from tests.system.ranks import run

DIM = 8
SLOW = Link((0.0, 1e6), (1e-6, 2e-6))
TABLE = Attention((16, 1024), (0.0, 1.0), ((2e-6, 1e-6), (2e-3, 1e-4)))


@dataclass(frozen=True)
class Case:
    """``grid``: (hcp, scp, inner). ``queries``, ``keys``: blocks; their lengths are drawn and differ."""

    grid: tuple[int, int, Inner]
    heads: int
    queries: int
    keys: int | None = None  # None: self-attention
    batch: int = 2
    dtype: torch.dtype = torch.float64
    impl: Literal["reference", "triton"] = "reference"

    def __str__(self) -> str:
        hcp, scp, inner = self.grid
        cross = f"x{self.keys}" if self.keys else ""
        return f"{hcp}x{scp}-{inner}-{self.heads}heads-{self.queries}{cross}blocks-{self.dtype}".replace("torch.", "")


CASES = [
    Case((2, 1, "hcp"), heads=5, queries=7),
    Case((2, 1, "hcp"), heads=2, queries=2, batch=1, dtype=torch.float32),
    Case((1, 2, "hcp"), heads=5, queries=7, dtype=torch.float32),
    Case((1, 2, "hcp"), heads=3, queries=5, keys=8),
    Case((4, 1, "hcp"), heads=6, queries=11),
    Case((4, 1, "hcp"), heads=4, queries=9, keys=6, dtype=torch.float32),
    Case((1, 4, "hcp"), heads=5, queries=13),
    Case((2, 2, "hcp"), heads=5, queries=11),
    Case((2, 2, "scp"), heads=5, queries=11),
    Case((2, 2, "hcp"), heads=3, queries=6, keys=9, dtype=torch.float32),
    Case((2, 2, "scp"), heads=7, queries=4, batch=1, dtype=torch.float32),
]


def ranks_of(case: Case) -> int:
    return case.grid[0] * case.grid[1]


def blocks(count: int, draw: torch.Generator) -> Blocks:
    lengths = torch.randint(1, 6, (count,), generator=draw)
    return Blocks(torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(), int(lengths.max()))


def problem(case: Case) -> tuple[list[torch.Tensor], Selection]:
    """q, k, v, the gradient of the output, and lists from empty to full: heads differ, samples differ."""
    draw = torch.Generator().manual_seed(len(str(case)) + 7 * case.heads + case.queries)
    queries = blocks(case.queries, draw)
    keys = queries if case.keys is None else blocks(case.keys, draw)
    density = torch.linspace(0.1, 0.9, case.heads)[None, :, None, None]
    mask = torch.rand(case.batch, case.heads, queries.count, keys.count, generator=draw) < density
    mask[0, 0, 0] = False  # a list without keys
    mask[:, -1] = True  # a head that sees all
    mask[-1, 0, -1, 0] = True  # none without any
    lengths = (queries.tokens, keys.tokens, keys.tokens, queries.tokens)
    shapes = [(case.batch, case.heads, tokens, DIM) for tokens in lengths]
    tensors = [torch.randn(shape, generator=draw, dtype=case.dtype) for shape in shapes]
    return tensors, Selection.from_mask(mask, queries, keys)


def plan_of(case: Case, selection: Selection) -> Plan:
    """Heads by LPT on the grid that the case asks for, whether or not it is the best."""
    ranks, (hcp, _, inner) = ranks_of(case), case.grid
    profile = profile_from_selections([selection], ranks, DIM, case.dtype.itemsize)
    cluster = Cluster(ranks=ranks, ranks_per_node=2, memory=1e9, intra=SLOW, inter=SLOW, compute=TABLE)
    rows = assignment.lpt(profile.layers[0].burdens, hcp)
    heads = [[head for head in range(case.heads) if rows[head] == row] for row in range(hcp)]
    layer = planner.cost(profile, 0, cluster, PlanOptions(), inner, heads)
    return Plan(profile.layout, case.heads, DIM, (layer,))


def part_of(layout: BlockLayout, kind: Literal["queries", "keys"], rank: int) -> slice:
    tokens = layout.tokens(kind, rank)
    return slice(tokens.start, tokens.stop)


def attended(case: Case) -> list[torch.Tensor]:
    """Output and gradients of one process, by the reference."""
    (q, k, v, grad), selection = problem(case)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = sparse_attention(*leaves, selection, impl="reference")
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def on_rank(rank: int, cases: list[Case]) -> list[dict[str, Any]]:
    """Each case's shards of output and gradients, and the bytes that moved."""
    found = []
    for case in cases:
        (q, k, v, grad), selection = problem(case)
        plan = plan_of(case, selection)
        groups = Groups(plan)
        here, there = (part_of(plan.layout, kind, rank) for kind in ("queries", "keys"))
        leaves = [x[:, :, part].clone().requires_grad_() for x, part in ((q, here), (k, there), (v, there))]
        mine = shard_selection(selection, plan.layout, rank)
        # Lists laid end to end must be good ones; a head's lists alone may all be empty, which the check forbids.
        attend = partial(sparse_attention, impl=case.impl, check=case.grid[1] > 1)
        out = parallel_attention(*leaves, mine, 0, groups, attend=attend)
        grads = torch.autograd.grad(out, leaves, grad[:, :, here])
        found.append({"shards": [out.detach(), *grads], "moved": dict(groups.moved)})
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[Case, list[dict[str, Any]]]:
    """What every rank found of every case; one set of processes for each number of ranks."""
    made = {}
    for ranks in (2, 4):
        cases = [case for case in CASES if ranks_of(case) == ranks]
        each = run(tmp_path_factory.mktemp("ranks") / str(ranks), ranks, on_rank, cases)
        made |= {case: [rank[number] for rank in each] for number, case in enumerate(cases)}
    return made


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_all_gradients_are_those_of_one_process(found, case):
    check_values(case, found[case], 1e-12 if case.dtype == torch.float64 else 1e-6)


def check_values(case: Case, ranks: list[dict[str, Any]], tolerance: float) -> None:
    for number, (name, expected) in enumerate(zip(("o", "dq", "dk", "dv"), attended(case), strict=True)):
        whole = torch.cat([rank["shards"][number] for rank in ranks], dim=2)
        assert (whole - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max())), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bytes_that_move_are_the_plans(found, case):
    plan = plan_of(case, problem(case)[1])
    for rank, costs in enumerate(plan.layers[0].ranks):
        moved = found[case][rank]["moved"]
        for what, sent, received in (
            ("hcp", costs.hcp_sent, costs.hcp_received),
            ("scp", costs.scp_sent, costs.scp_received),
        ):
            counted = [moved.get((what, *key), 0) for key in (("forward", "sent"), ("forward", "received"))]
            assert counted == [sent, received]
            back = [moved.get((what, *key), 0) for key in (("backward", "received"), ("backward", "sent"))]
            assert back == counted
    assert any(costs.hcp_sent or costs.scp_sent for costs in plan.layers[0].ranks)


# -- what does not fit -------------------------------------------------------------------------------------------------

GOOD = Case((2, 1, "hcp"), heads=3, queries=5)


def refused_on_rank(rank: int) -> dict[str, str]:
    """The errors of calls that are wrong on rank 1 alone."""
    (q, k, v, _), selection = problem(GOOD)
    plan = plan_of(GOOD, selection)
    layout = plan.layout
    q, k, v = (x[:, :, part_of(layout, "queries", rank)] for x in (q, k, v))
    mine = shard_selection(selection, layout, rank)
    odd = rank == 1

    def said(call, *arguments, **settings) -> str:
        try:
            call(*arguments, **settings)
        except ValueError as error:
            return str(error)
        return "no error"

    groups = Groups(plan)
    outside = mine.indices.clone()
    outside[-1] = 99
    falling = mine.indices.flip(0)
    wrong_lists = replace(mine, indices=outside) if odd else mine
    other = replace(plan, layers=(replace(plan.layers[0], bound=0.0),))
    return {
        "heads": said(parallel_attention, *(x[:, :2] if odd else x for x in (q, k, v)), mine, 0, groups),
        "tokens": said(parallel_attention, q[:, :, 1:] if odd else q, k, v, mine, 0, groups),
        "index": said(parallel_attention, q, k, v, wrong_lists, 0, groups),
        "order": said(parallel_attention, q, k, v, replace(mine, indices=falling) if odd else mine, 0, groups),
        "blocks": said(parallel_attention, q, k, v, selection if odd else mine, 0, groups),
        "layer": said(parallel_attention, q, k, v, mine, 1 if odd else 0, groups),
        "dtype": said(parallel_attention, *(x.float() if odd else x for x in (q, k, v)), mine, 0, groups),
        "learns": said(parallel_attention, q.requires_grad_(odd), k, v, mine, 0, groups),
        "plan": said(Groups, other if odd else plan),
        "ranks": said(Groups, plan_of(Case((4, 1, "hcp"), 4, 5), problem(Case((4, 1, "hcp"), 4, 5))[1])),
        "fine": said(parallel_attention, q.detach(), k, v, mine, 0, groups),
    }


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> list[dict[str, str]]:
    return run(tmp_path_factory.mktemp("refused") / "2", 2, refused_on_rank)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("heads", "rank 1: q is [2, 2, 12, 8], the plan asks for [batch, 3 heads, 12 tokens"),
        ("tokens", "rank 1: q is [2, 3, 11, 8], the plan asks for [batch, 3 heads, 12 tokens"),
        ("index", "rank 1: key block 99 is not among 0..4"),
        ("order", "rank 1: key blocks of a list must ascend without duplicates"),
        ("blocks", "rank 1: the selection's query blocks, 5 of"),
        ("layer", "rank 1: layer 1: the plan has layers 0 to 0"),
        ("dtype", "ranks 0 and 1: "),
        ("learns", "not the same call (layer, batch and heads, dim, dtype, whether it learns)"),
        ("plan", "not the same plan; make it once"),
        ("ranks", "the plan is for 4 ranks, the process group has 2"),
        ("fine", "no error"),
    ],
)
def test_what_is_wrong_on_one_rank_is_one_error_on_all(refused, what, text):
    assert refused[0][what] == refused[1][what]
    assert text in refused[0][what]


def waits_for_nobody(rank: int) -> None:
    if rank == 0:
        torch.distributed.barrier()


def test_ranks_that_hang_are_killed(tmp_path):
    with pytest.raises(AssertionError, match=r"ranks \[0\] still ran after 3 s|rank 0"):
        run(tmp_path / "hang", 2, waits_for_nobody, limit=3)
