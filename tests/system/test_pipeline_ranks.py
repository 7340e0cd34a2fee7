"""Pipelines over gloo: every gradient is that of one process, and what fails on one rank fails on all."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stepstack.batching.collate import TokenMicroBatch
from stepstack.core.types import LossOut
from stepstack.loops.supervised import likelihood
from stepstack.models.chunks import cut, policy_modules
from stepstack.models.lm.policy import Policy
from stepstack.parallel.pace import PassPace
from stepstack.parallel.pipeline import Pipeline, PipelineError, place
from stepstack.planning.pipeline.graph import PipelinePlan
from stepstack.planning.pipeline.profile import LayerProfile, ModuleProfile, PipelineProfile
from stepstack.planning.pipeline.timeline import timeline
from tests import pipelines
from tests.system.ranks import run


@dataclass(frozen=True)
class Case:
    """``segments``: chunks of a module on each rank; ``most``: pictures of a part; ``ordered``: gradients in the order
    of microbatches."""

    name: str
    pack: bool
    segments: int = 1
    most: int = 100
    split: bool = False
    ordered: bool = False
    frozen: bool = False
    replicas: int = 1
    mixed: bool = False
    seed: int = 0

    def autocast(self) -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16) if self.mixed else nullcontext()

    def policy(self) -> Policy:
        policy = pipelines.POLICIES[self.name]()
        if self.frozen:
            policy.lm.model.visual.requires_grad_(False)
        return policy

    def batch(self, policy: Policy, replica: int) -> list[TokenMicroBatch]:
        """The second replica has no pictures."""
        count = 1 if replica else 4
        return pipelines.batch(policy, 100 * replica + self.seed, pack=self.pack, count=count)


TWO = [
    Case("qwen2_5_vl", pack=True, ordered=True),
    Case("qwen2_5_vl", pack=False, segments=2, split=True, ordered=True),
    Case("qwen2_5_vl", pack=True, segments=2, most=1, seed=1),
    Case("qwen2_5_vl", pack=False, most=1, split=True, seed=2),
    Case("qwen2_5_vl", pack=True, split=True, frozen=True, ordered=True),
    Case("qwen2_vl", pack=True, split=True, ordered=True),
    Case("qwen2_vl", pack=False, segments=2, most=1, seed=3),
    Case("qwen2_5_vl", pack=True, mixed=True, ordered=True),
    Case("qwen2", pack=True, ordered=True),
    Case("qwen2", pack=False, segments=2, split=True, seed=4),
]
FOUR = [
    Case("qwen2_5_vl", pack=True, ordered=True),
    Case("qwen2_5_vl", pack=False, most=1, split=True, seed=5),
    Case("qwen2_vl", pack=True, split=True, ordered=True),
    Case("qwen2", pack=True, split=True, seed=6),
    Case("qwen2_5_vl", pack=True, most=1, split=True, replicas=2, seed=7),
    Case("qwen2", pack=False, segments=2, replicas=2, seed=8),
]


def planned(case: Case, policy: Policy, micros: list[TokenMicroBatch], ranks: int) -> PipelinePlan:
    chunks = pipelines.spread(policy_modules(policy), ranks, case.segments)
    split = frozenset(range(len(chunks))) if case.split else frozenset()
    graph = pipelines.graph_of(policy, micros, chunks, case.most, split)
    return pipelines.drawn(graph, case.seed, ordered=case.ordered)


def carried_out(process: int, processes: int, cases: list[Case]) -> list[Any]:
    """(metrics, norm, gradients by the names of the whole model) of each case."""
    found = []
    for case in cases:
        rank, replica = place(process, case.replicas)
        policy = case.policy()
        micros = case.batch(policy, replica)
        plan = planned(case, policy, micros, processes // case.replicas)
        pipeline = Pipeline(cut(policy, plan.graph.chunks, rank), case.replicas, timeout=20)
        sums = pipeline.step(plan, micros, likelihood, 0.1, autocast=case.autocast)
        pipeline.reduce_gradients()
        norm = pipeline.global_norm()
        grads = pipelines.taken(policy)
        found.append((sums, norm, {pipeline.cut.copies.get(name, name): grad for name, grad in grads.items()}))
    return found


def joined(found: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Gradients of all ranks; those that several have must be equal bit for bit."""
    whole: dict[str, torch.Tensor] = {}
    for part in found:
        for name, grad in part.items():
            assert name not in whole or torch.equal(whole[name], grad), name
            whole[name] = grad
    return whole


@pytest.mark.parametrize(("processes", "cases"), [(2, TWO), (4, FOUR)])
def test_gradients_of_ranks_are_those_of_one_process(tmp_path, processes, cases):
    found = run(tmp_path / "ranks", processes, carried_out, processes, cases)
    for case, parts in zip(cases, zip(*found, strict=True), strict=True):
        policy = case.policy()
        micros = [micro for replica in range(case.replicas) for micro in case.batch(policy, replica)]
        wanted = pipelines.gradients(policy, micros, 0.1, case.autocast)
        worst = pipelines.check(joined([grads for _, _, grads in parts]), wanted, exact=case.ordered)
        print(f"{processes} processes, {case}: {worst:.1e}")
        assert all(part[:2] == parts[0][:2] for part in parts)
        sums, norm, _ = parts[0]
        with case.autocast():
            outs = [likelihood(policy, micro) for micro in micros]
        assert sums.sums["loss"] == pytest.approx(sum(out.total.item() for out in outs), rel=1e-6)
        assert (sums.count, sums.work) == (sum(out.count for out in outs), sum(out.work for out in outs))
        squares = sum(grad.double().square().sum() for grad in wanted.values())
        assert norm == pytest.approx(float(squares) ** 0.5, rel=1e-6)


# -- failures ----------------------------------------------------------------------------------------------------------


def broken(module: Any, micro: Any) -> LossOut:
    raise ValueError("no loss today")


def failures(process: int, processes: int) -> list[str]:
    """Messages of what goes wrong on one rank only."""
    case = Case("qwen2_5_vl", pack=True)
    policy = case.policy()
    micros = case.batch(policy, 0)
    plan = planned(case, policy, micros, processes)
    other = pipelines.drawn(plan.graph, 77)
    pipeline = Pipeline(cut(policy, plan.graph.chunks, process), timeout=20)
    messages = []
    for own_plan, own_micros, loss in [
        (plan, micros, broken),
        (other if process == 1 else plan, micros, likelihood),
        (plan, micros[:-1] if process == 1 else micros, likelihood),
    ]:
        with pytest.raises(PipelineError) as caught:
            pipeline.step(own_plan, own_micros, loss, 0.1)
        messages.append(str(caught.value))
    pipelines.taken(policy)
    pipeline.step(plan, micros, likelihood, 0.1)  # it goes on
    return messages


def test_what_fails_on_one_rank_fails_on_all_with_one_message(tmp_path):
    first, *others = run(tmp_path / "ranks", 4, failures, 4)
    assert others == [first] * 3
    assert all(
        wanted in message
        for wanted, message in zip(
            [
                "rank 3 failed: pass 7F",
                "rank 1 has another plan than rank 0 (",
                "rank 1 could not begin a batch: PlanError: the plan has 4 microbatches, and the batch 3",
            ],
            first,
            strict=True,
        )
    ), first
    assert first[0].endswith("ValueError: no loss today")


def gone(process: int, folder: Path, how: str) -> tuple[str, float]:
    case = Case("qwen2_5_vl", pack=True)
    policy = case.policy()
    micros = case.batch(policy, 0)
    plan = planned(case, policy, micros, 4)
    pipeline = Pipeline(cut(policy, plan.graph.chunks, process), timeout=2 if how == "hangs" else 20)

    def loss(module: Any, micro: TokenMicroBatch) -> LossOut:
        if how == "dies":
            torch.save(("dead", 0.0), folder / f"{process}.pt")
            os._exit(1)
        time.sleep(3)
        return likelihood(module, micro)

    begun = time.monotonic()
    with pytest.raises(PipelineError) as caught:
        pipeline.step(plan, micros, loss, 0.1)
    return str(caught.value), time.monotonic() - begun


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_rank_that_is_gone_fails_all(tmp_path, how):
    found = run(tmp_path / "ranks", 4, gone, tmp_path / "ranks", how)
    messages = [message for message, _ in found if message != "dead"]
    print(*messages, sep="\n")
    assert any("rank 3 failed" in message or "of rank 3 did not come" in message for message in messages), messages
    if how == "hangs":
        assert len(messages) == 4
        assert len(set(messages)) == 1
    assert max(seconds for _, seconds in found) < 20


# -- pace --------------------------------------------------------------------------------------------------------------


def line(slope: float) -> LayerProfile:
    """A backward pass takes twice as long as a forward pass."""
    once, twice = (0.0, slope), (0.0, 2 * slope)
    return LayerProfile(sizes=(0, 1), forward=once, backward=twice, input=once, weight=once, saved=once, kept=once)


PROFILE = PipelineProfile(
    model="tiny",
    device="paced",
    modules=(
        ModuleProfile(name="vision", layers=4, layer=line(5e-4)),
        ModuleProfile(name="text", layers=4, reads=("vision",), layer=line(4e-4)),
    ),
)


def paced(process: int) -> tuple[list, int, float]:
    case = Case("qwen2_5_vl", pack=True, split=True)
    policy = case.policy()
    micros = case.batch(policy, 0)
    plan = planned(case, policy, micros, 2)
    pipeline = Pipeline(cut(policy, plan.graph.chunks, process), timeout=20)
    pipeline.step(plan, micros, likelihood, 1.0)
    pace = PassPace.of(plan.graph, PROFILE)
    begun = time.perf_counter()
    pipeline.step(plan, micros, likelihood, 1.0, pace=pace)
    return pace.carried_out, pace.overruns, time.perf_counter() - begun


def test_paced_ranks_keep_to_the_plan(tmp_path):
    """The ratio to the timeline is printed, and asserted is that nothing came early: this machine may be busy."""
    found = run(tmp_path / "ranks", 2, paced)
    case = Case("qwen2_5_vl", pack=True, split=True)
    policy = case.policy()
    plan = planned(case, policy, case.batch(policy, 0), 2)
    makespan = timeline(plan, PROFILE).makespan
    seconds = max(seconds for *_, seconds in found)
    print(f"paced {seconds:.2f} s, simulated {makespan:.2f} s, overruns {[overruns for _, overruns, _ in found]}")
    assert [tuple(order) for order, *_ in found] == list(plan.order)
    assert seconds >= makespan - 0.01
