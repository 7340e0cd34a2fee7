"""Chunks of policies on one rank: any order of passes, whole or split, makes the gradients of the uncut policy."""

from __future__ import annotations

import copy

import pytest

from stepstack.loops.supervised import likelihood
from stepstack.models.chunks import cut, policy_modules
from stepstack.parallel.pipeline import Pipeline
from tests import pipelines


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("name", pipelines.POLICIES)
def test_gradients_in_order_are_those_of_the_whole(name, pack, split):
    policy = pipelines.POLICIES[name]()
    micros = pipelines.batch(policy, seed=1, pack=pack)
    wanted = pipelines.gradients(policy, micros, 0.1)
    modules = policy_modules(policy)
    chunks = pipelines.spread(modules, 1, segments=3)
    every = frozenset(range(len(chunks))) if split else frozenset()
    graph = pipelines.graph_of(policy, micros, chunks, split=every)
    pipeline = Pipeline(cut(copy.deepcopy(policy), chunks, 0))
    for seed in range(2):
        pipeline.step(pipelines.drawn(graph, seed, ordered=True), micros, likelihood, 0.1)
        found = pipelines.taken(pipeline.cut.policy)
        pipelines.check(found, wanted, exact=True)
