"""Pipelines over gloo: every gradient is that of one process, and what fails on one rank fails on all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from stepstack.loops.supervised import likelihood
from stepstack.models.chunks import cut, policy_modules
from stepstack.parallel.pipeline import Pipeline
from tests import pipelines
from tests.system.ranks import run


@dataclass(frozen=True)
class Case:
    """``segments``: chunks of a module on each rank; ``most``: pictures of a part."""

    name: str
    ranks: int
    pack: bool
    segments: int = 1
    most: int = 100
    split: bool = False
    ordered: bool = False
    frozen: bool = False
    seed: int = 0


CASES = [
    Case("qwen2_5_vl", 2, pack=True, ordered=True),
    Case("qwen2_5_vl", 2, pack=False, segments=2, ordered=True, split=True),
    Case("qwen2_5_vl", 2, pack=True, most=1),
    Case("qwen2_vl", 2, pack=False, ordered=True),
]


def joined(found: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Gradients of all ranks; those that several have must be equal bit for bit."""
    whole: dict[str, torch.Tensor] = {}
    for part in found:
        for name, grad in part.items():
            assert name not in whole or torch.equal(whole[name], grad), name
            whole[name] = grad
    return whole


def carried_out(rank: int, cases: list[Case]) -> list[Any]:
    found = []
    for case in cases:
        policy = pipelines.POLICIES[case.name]()
        if case.frozen:
            policy.lm.model.visual.requires_grad_(False)
        micros = pipelines.batch(policy, case.seed, pack=case.pack)
        modules = policy_modules(policy)
        chunks = pipelines.spread(modules, case.ranks, case.segments)
        split = frozenset(range(len(chunks))) if case.split else frozenset()
        graph = pipelines.graph_of(policy, micros, chunks, case.most, split)
        plan = pipelines.drawn(graph, case.seed, ordered=case.ordered)
        pipeline = Pipeline(cut(policy, chunks, rank), timeout=20)
        sums = pipeline.step(plan, micros, likelihood, 0.1)
        pipeline.reduce_gradients()
        norm = pipeline.global_norm()
        grads = {pipeline.cut.copies.get(name, name): grad for name, grad in pipelines.taken(policy).items()}
        found.append((sums, norm, grads))
    return found


@pytest.mark.parametrize("ranks", [2])
def test_gradients_of_ranks_are_those_of_one_process(tmp_path, ranks):
    cases = [case for case in CASES if case.ranks == ranks]
    found = run(tmp_path / "ranks", ranks, carried_out, cases)
    for case, parts in zip(cases, zip(*found, strict=True), strict=True):
        policy = pipelines.POLICIES[case.name]()
        if case.frozen:
            policy.lm.model.visual.requires_grad_(False)
        micros = pipelines.batch(policy, case.seed, pack=case.pack)
        wanted = pipelines.gradients(policy, micros, 0.1)
        worst = pipelines.check(
            joined([grads for _, _, grads in parts]), wanted, exact=case.ordered and case.most == 100
        )
        print(case, worst)
        norm = torch.stack([grad.norm() for grad in wanted.values()]).norm()
        assert all(sums == parts[0][0] and own == parts[0][1] for sums, own, _ in parts)
        assert parts[0][1] == pytest.approx(float(norm), rel=1e-6)
