"""Ranks that share videos train a DiT with DSV as one process does: outputs, gradients, what DSV learns and logs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch

from stepstack.models.video.dit import VideoDiT
from stepstack.models.video.dsv.config import ContextPlan, DsvConfig, Fixed
from stepstack.models.video.dsv.diffusers import enable_dsv
from stepstack.models.video.dsv.handle import Dsv
from stepstack.parallel.dsv import DsvContext
from stepstack.parallel.ulysses import Context
from stepstack.planning.contextparallel.problem import Cluster, PlanOptions
from stepstack.planning.timing import Attention, Link
from tests.system.ranks import run
from tests.system.test_video_context import inputs, model

LINK = Link((0.0, 1e6), (1e-6, 2e-6))
TABLE = Attention((16, 1024), (0.0, 1.0), ((2e-6, 1e-6), (2e-3, 1e-4)))
SPARSITY = ([0.1, 0.3, 0.8, 0.9], [0.7, 0.3, 0.3, 0.9])  # of 2 blocks' heads, as if it had been observed
STEPS = ((3, 3, 5), (2, 4, 3), (3, 3, 5))  # of two sizes: cubes that differ in length, and do not divide by the ranks


@dataclass(frozen=True)
class Case:
    """``ranks`` share a video; ``stage`` in which it begins; ``shape``: of the plans' grids."""

    ranks: int
    stage: int
    shape: tuple[int, int]
    selector: Literal["low_rank", "pooled"] = "low_rank"
    again: bool = False  # gradient checkpointing
    groups: int = 1  # of ranks, all with the same videos
    bf16: bool = False  # under autocast, of a float32 model

    def __str__(self) -> str:
        hcp, scp = self.shape
        more = ("-checkpoints" if self.again else "") + ("-2groups" if self.groups == 2 else "")
        return f"stage{self.stage}-{hcp}x{scp}-{self.selector}{more}{'-bf16' if self.bf16 else ''}"


CASES = [
    Case(2, 1, (2, 1)),
    Case(2, 1, (2, 1), again=True),
    Case(2, 2, (2, 1)),
    Case(2, 2, (1, 2)),
    Case(2, 2, (2, 1), selector="pooled", again=True),
    Case(4, 2, (2, 2)),
    Case(4, 2, (4, 1), again=True),
    Case(4, 2, (1, 4), selector="pooled"),
    Case(2, 2, (1, 2), groups=2),
    Case(2, 1, (2, 1), bf16=True),
    Case(2, 2, (1, 2), bf16=True),
    Case(2, 2, (2, 1), selector="pooled", bf16=True),
]


def context_plan(case: Case) -> ContextPlan:
    cluster = Cluster(ranks=case.ranks, ranks_per_node=2, memory=1e9, intra=LINK, inter=LINK, compute=TABLE)
    return ContextPlan(cluster=cluster, options=PlanOptions(shapes=(case.shape,)), every=2)


def sparse_model(case: Case) -> tuple[VideoDiT, Dsv]:
    """In float64, with predictors in float32. It stays in its stage."""
    dit = model(torch.float32 if case.bf16 else torch.float64)
    if case.again:
        dit.enable_gradient_checkpointing()
    often: dict[str, Any] = {"sampling": 2, "every_sparse": 1, "warmup": 9}
    config = DsvConfig(dispatch=Fixed(), cube=(2, 2, 2), selector=case.selector, rank=8, **often)
    dsv = enable_dsv(dit, config)
    dsv.stage = case.stage
    if case.stage == 2:
        for attention, sparsity in zip(dsv.attentions, SPARSITY, strict=True):
            attention.sparsity_H = torch.tensor(sparsity)
    return dit, dsv


def stepped(case: Case, dit: VideoDiT, dsv: Dsv, size: int, shared: Any = None) -> list[dict[str, Any]]:
    """Two passes of every step and what they gave. The weights stay, so that nothing but these passes can differ."""
    found = []
    half = torch.autocast("cpu", torch.bfloat16, enabled=case.bf16)
    for grid in STEPS:
        outs = []
        for _ in range(2):
            with shared or torch.enable_grad():
                with half:
                    out = dit(**inputs(grid, torch.float32 if case.bf16 else torch.float64))
                (out.double().square().sum() / size).backward()
            outs.append(out.detach())
        gradients = {f"grad.{name}": p.grad for name, p in dit.named_parameters() if p.grad is not None}
        learnt = {f"learnt.{a.index}.{n}": g for a in dsv.attentions for n, g in enumerate(a.observed.gradients)}
        counts = [a.observed.count for a in dsv.attentions]
        dit.zero_grad(set_to_none=True)
        dsv.step()
        found.append(
            {"outs": outs, "gradients": gradients, "learnt": learnt, "counts": counts, "metrics": dsv.metrics()}
        )
    return found


def on_rank(rank: int, cases: list[Case]) -> list[dict[str, Any]]:
    found = []
    for case in cases:
        dit, dsv = sparse_model(case)
        context = DsvContext(dit, case.ranks, dsv, context_plan(case))
        steps = stepped(case, dit, dsv, case.ranks, context)
        with torch.no_grad():
            alone = None if case.bf16 else dit(**inputs(STEPS[0]))  # each for itself: nobody else is asked
        plans = [(layer.hcp, layer.scp, layer.heads) for g in context.groups.values() for layer in g.plan.layers]
        moved = {} if context.newest is None else dict(context.newest.moved)
        found.append({"steps": steps, "alone": alone, "plans": plans, "moved": moved, "planned": dsv.planned})
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[Case, list[dict[str, Any]]]:
    """What every rank found of every case; one set of processes for each number of ranks."""
    made = {}
    for ranks in (2, 4):
        cases = [case for case in CASES if case.ranks * case.groups == ranks]
        each = run(tmp_path_factory.mktemp("ranks") / str(ranks), ranks, on_rank, cases)
        made |= {case: [rank[number] for rank in each] for number, case in enumerate(cases)}
    return made


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_gradients_and_figures_are_those_of_one_process(found, case):
    """In bfloat16 a unit in the last place is 1/128, by which a cube more or less may be selected."""
    dit, dsv = sparse_model(case)
    want = stepped(case, dit, dsv, 1)
    near, learnt, seen = (5e-2, 5e-2, 1e-2) if case.bf16 else (1e-10, 1e-4, 1e-5)
    assert all(dsv.sparse()) == (case.stage == 2)
    for step, one in enumerate(want):
        many = [rank["steps"][step] for rank in found[case]]
        for rank in many:
            assert rank["counts"] == one["counts"] == [2, 2]
            for a, b in zip(rank["outs"], one["outs"], strict=True):
                assert (a - b).norm() <= near * b.norm()
            assert rank["metrics"] == pytest.approx(one["metrics"], rel=seen, abs=seen / 10)
        for name, gradient in one["gradients"].items():
            total = sum(rank["gradients"][name] for rank in many) / case.groups
            assert (total - gradient).norm() <= 2 * near * gradient.norm(), name
        for name, gradient in one["learnt"].items():  # means over ranks, after the step has averaged them
            for rank in many:
                assert (rank["learnt"][name] - gradient).norm() <= learnt * gradient.norm(), name
    for rank in found[case] if not case.bf16 else ():
        with torch.no_grad():
            torch.testing.assert_close(rank["alone"], dit(**inputs(STEPS[0])), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [case for case in CASES if case.stage == 2], ids=str)
def test_sparse_attention_goes_by_the_plan(found, case):
    for rank in found[case]:
        assert [plan[:2] for plan in rank["plans"]] == [case.shape] * len(rank["plans"])
        what = {"hcp": case.shape[0] > 1, "scp": case.shape[1] > 1}
        assert {name: any(key[0] == name for key in rank["moved"]) for name in what} == what
    if case.shape == (2, 1):  # by number, the two heads that see most would be on one rank
        assert found[case][0]["plans"][0][2] != ((0, 1), (2, 3))


def test_plans_are_made_anew_on_every_second_step(found):
    """Made before steps 1 and 3; what was observed has changed the sparsity meanwhile."""
    case = CASES[2]
    dit, dsv = sparse_model(case)
    for number, grid in enumerate(STEPS):
        if number % 2 == 0:
            wanted = [a.sparsity_H.tolist() for a in dsv.attentions]
        for _ in range(2):
            dit(**inputs(grid))
        dsv.step()
    assert wanted[0] != pytest.approx(SPARSITY[0], abs=1e-3)
    for rank in found[case]:
        assert rank["planned"] == [pytest.approx(row, abs=1e-5) for row in wanted]
        assert len(rank["plans"]) == 2  # of one size: the other's was dropped with the old plan


def refused(rank: int) -> list[str]:
    case = CASES[0]
    few, other = replace(case, ranks=2), model()
    dit, dsv = sparse_model(few)
    context = DsvContext(dit, 2, dsv, context_plan(case))

    def said(call, *arguments) -> str:
        try:
            call(*arguments)
        except ValueError as error:
            return str(error)
        return "no error"

    def tiny() -> None:
        with context:
            dit(**inputs((1, 2, 2)))

    again = said(DsvContext, dit, 2, dsv, context_plan(case))
    dense = said(DsvContext, other, 2, dsv, context_plan(case))
    return [again, dense, said(Context, sparse_model(case)[0], 2), said(tiny)]


def test_what_cannot_be_shared_is_refused(tmp_path):
    for said in run(tmp_path / "ranks", 2, refused):
        assert said[0] == "VideoDsv attends here: this context parallelism needs DSV, once"
        assert said[1] == "Dense attends here: this context parallelism needs DSV, once"
        assert said[2] == "VideoDsv attends here: context parallelism needs Dense"
        assert said[3].startswith("1 query and 1 key blocks cannot be cut for 2 ranks")
