"""Chunks of policies on one rank: any order of passes, whole or split, makes the gradients of the uncut policy."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stepstack.core.hf import enable_gradient_checkpointing
from stepstack.loops.supervised import likelihood
from stepstack.models.chunks import TEXT_FAMILIES, cut, policy_modules
from stepstack.models.lm import policy as policies
from stepstack.models.lm.policy import Policy
from stepstack.parallel.pace import PassPace
from stepstack.parallel.pipeline import BatchSums, Pipeline, PipelineError
from tests import families, pipelines, tools


def piped(
    policy: Policy,
    micros: list,
    *,
    segments: int = 3,
    most: int = 100,
    split: bool = False,
    ordered: bool = True,
    seed: int = 0,
    prepare: Callable[[Policy], object] = lambda policy: None,
    **how: Any,
) -> tuple[BatchSums, dict[str, torch.Tensor]]:
    """Sums and gradients of a copy of the policy that is cut into chunks on one rank."""
    chunks = pipelines.spread(policy_modules(policy), 1, segments)
    every = frozenset(range(len(chunks))) if split else frozenset()
    graph = pipelines.graph_of(policy, micros, chunks, most, every)
    pipeline = Pipeline(cut(copy.deepcopy(policy), chunks, 0))
    prepare(pipeline.cut.policy)
    sums = pipeline.step(pipelines.drawn(graph, seed, ordered=ordered), micros, likelihood, 0.1, **how)
    return sums, pipelines.taken(pipeline.cut.policy)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("name", pipelines.POLICIES)
def test_gradients_in_order_are_those_of_the_whole(name, pack, split):
    policy = pipelines.POLICIES[name]()
    micros = pipelines.batch(policy, seed=1, pack=pack)
    wanted = pipelines.gradients(policy, micros, 0.1)
    for seed in range(2):
        pipelines.check(piped(policy, micros, split=split, seed=seed)[1], wanted, exact=True)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(pipelines.POLICIES)),
    seed=st.integers(0, 10_000),
    most=st.integers(1, 3),
    segments=st.integers(1, 4),
    split=st.booleans(),
    pack=st.booleans(),
)
def test_gradients_of_any_order_are_those_of_the_whole(name, seed, most, segments, split, pack):
    """In float64, where nothing but a mistake makes a difference of this size."""
    policy = pipelines.POLICIES[name]().double()
    micros = pipelines.batch(policy, seed, pack=pack, count=3)
    wanted = pipelines.gradients(policy, micros, 0.1)
    how = {"most": most, "segments": segments, "split": split, "seed": seed, "ordered": False}
    assert max(pipelines.errors(piped(policy, micros, **how)[1], wanted).values()) < 1e-12


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_families_of_language_models(name):
    policy = Policy(families.family(name))
    micros = pipelines.batch(pipelines.qwen2(), seed=2)
    for micro in micros:
        micro.input_ids.remainder_(tools.VOCAB)
        micro.labels.remainder_(tools.VOCAB)
    wanted = pipelines.gradients(policy, micros, 0.1)
    pipelines.check(piped(policy, micros, split=True)[1], wanted, exact=True)


def test_layers_of_two_kinds_keep_their_kind():
    """A chunk's first layer attends in a window, or not, as it does in the whole."""
    lm = pipelines.qwen2().lm
    changed = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    config = type(lm.config)(**lm.config.to_dict() | changed | {"layer_types": kinds})
    torch.manual_seed(0)
    policy = Policy(tools.perturbed(type(lm)(config), 0.1))
    micros = pipelines.batch(policy, seed=2)
    wanted = pipelines.gradients(policy, micros, 0.1)
    pipelines.check(piped(policy, micros, segments=4)[1], wanted, exact=True)


@pytest.mark.parametrize("split", [False, True])
def test_a_frozen_tower_gets_no_gradients(split):
    policy = pipelines.qwen2_5_vl()
    policy.lm.model.visual.requires_grad_(False)
    micros = pipelines.batch(policy, seed=4)
    found = piped(policy, micros, split=split)[1]
    assert not [name for name in found if "visual" in name]
    pipelines.check(found, pipelines.gradients(policy, micros, 0.1), exact=True)


@pytest.mark.parametrize("frozen", ["language_model", "visual.blocks.1."])
@pytest.mark.parametrize("split", [False, True])
def test_gradients_go_through_what_is_frozen(frozen, split):
    policy = pipelines.qwen2_5_vl()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(frozen not in name)
    micros = pipelines.batch(policy, seed=4)[1:]
    pipelines.check(piped(policy, micros, split=split)[1], pipelines.gradients(policy, micros, 0.1), exact=True)


@pytest.mark.parametrize("split", [False, True])
def test_layers_that_are_computed_again(split):
    """Gradient checkpointing, of layers and of the head's logits, turned on behind the cut like by ``Trainable``."""
    policy = pipelines.qwen2_5_vl()
    micros = pipelines.batch(policy, seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "MAX_LOGIT_POSITIONS", 4)
        wanted = pipelines.gradients(policy, micros, 0.1)
        seen: list[nn.Module] = []
        for layer in policy.lm.model.language_model.layers:
            layer.input_layernorm.register_forward_hook(lambda module, args, output: seen.append(module))
        found = piped(policy, micros, split=split, prepare=lambda cut: enable_gradient_checkpointing(cut.lm))[1]
        pipelines.check(found, wanted, exact=True)
        if not split:  # else each group of weights computes its layer again: exact, and slow
            assert len(seen) == 2 * 4 * len(micros)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl", "qwen2"])
@pytest.mark.parametrize("split", [False, True])
def test_mixed_precision(name, split):
    def autocast() -> contextlib.AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16)

    policy = pipelines.POLICIES[name]()
    micros = pipelines.batch(policy, seed=6)
    wanted = pipelines.gradients(policy, micros, 0.1, autocast)
    pipelines.check(piped(policy, micros, split=split, autocast=autocast)[1], wanted, exact=True)


def test_sums_are_those_of_the_losses():
    policy = pipelines.qwen2_5_vl()
    micros = pipelines.batch(policy, seed=7)
    outs = [likelihood(policy, micro) for micro in micros]
    micros.append(copy.copy(micros[-1]))
    micros[-1].blank = True
    sums, _ = piped(policy, micros, ordered=False)
    total = sum((out.total.detach() for out in outs), torch.zeros(()))
    assert sums.sums["loss"] == float(total)
    assert (sums.count, sums.work) == (sum(out.count for out in outs), sum(out.work for out in outs))


def test_a_blank_microbatch_weighs_nothing():
    policy = pipelines.qwen2_5_vl()
    micros = pipelines.batch(policy, seed=7)
    wanted = pipelines.gradients(policy, micros, 0.1)
    blank = copy.copy(micros[-1])
    blank.blank = True
    pipelines.check(piped(policy, [*micros, blank])[1], wanted, exact=True)


def test_an_error_names_its_pass():
    policy = pipelines.qwen2()
    micros = pipelines.batch(policy, seed=1)

    def broken(module: Callable, micro: Any) -> Any:
        raise ValueError("no loss today")

    chunks = pipelines.spread(policy_modules(policy), 1, 2)
    plan = pipelines.drawn(pipelines.graph_of(policy, micros, chunks), 0)
    with pytest.raises(PipelineError, match=r"rank 0 failed: pass 1F.: ValueError: no loss today"):
        Pipeline(cut(policy, chunks, 0)).step(plan, micros, broken, 1.0)


def test_a_pace_counts_what_is_too_slow():
    policy = pipelines.qwen2()
    micros = pipelines.batch(policy, seed=1, count=2)
    chunks = pipelines.spread(policy_modules(policy), 1, 2)
    plan = pipelines.drawn(pipelines.graph_of(policy, micros, chunks), 0)
    pipeline, loss = Pipeline(cut(policy, chunks, 0)), likelihood
    long, short = PassPace(lambda action: 0.2), PassPace(lambda action: 0.0)
    pipeline.step(plan, micros, loss, 1.0, pace=short)
    pipeline.step(plan, micros, loss, 1.0, pace=long)
    assert long.carried_out == short.carried_out == list(plan.order[0])
    assert (short.overruns, long.overruns) == (len(plan.order[0]), 0)
    assert short.late > 0
