"""Policies that are cut: what each rank keeps, under which names, and what cannot be cut."""

from __future__ import annotations

import pytest
from torch import nn

from stepstack.config import ConfigError
from stepstack.core.adapters import add_lora
from stepstack.core.config import Lora
from stepstack.models.chunks import cut, item_sizes, policy_modules
from stepstack.models.lm.distilled import TeacherPolicy
from stepstack.models.lm.policy import Policy
from stepstack.planning.pipeline.graph import Chunk, PipelineModule, PlanError
from tests import families, pipelines, tools


def names(policy: Policy) -> set[str]:
    return {name for name, _ in policy.named_parameters()}


@pytest.mark.parametrize("name", pipelines.POLICIES)
@pytest.mark.parametrize(("ranks", "segments"), [(2, 1), (4, 1), (2, 2)])
def test_ranks_keep_the_whole_model_among_them_and_nothing_twice(name, ranks, segments):
    make = pipelines.POLICIES[name]
    chunks = pipelines.spread(policy_modules(make()), ranks, segments)
    cuts = [cut(make(), chunks, rank) for rank in range(ranks)]
    kept = [names(one.policy) - one.copies.keys() for one in cuts]
    assert set().union(*kept) == names(make())
    assert sum(map(len, kept)) == len(names(make()))
    tied = name != "qwen2_vl"
    assert [one.tied for one in cuts] == [(0, ranks - 1) if tied else None] * ranks
    assert [bool(one.copies) for one in cuts] == [False] * (ranks - 1) + [tied]
    if tied:
        [(copy, original)] = cuts[-1].copies.items()
        assert copy == "lm.lm_head.weight"
        assert original in kept[0]


def test_a_chunk_holds_the_parameters_of_its_layers_alone():
    chunks = (Chunk("text", 0, 1, 0), Chunk("text", 1, 4, 1))
    first, last = (cut(pipelines.qwen2(), chunks, rank) for rank in range(2))
    assert {name.split(".")[3] for name in names(first.policy) if ".layers." in name} == {"0"}
    assert {name.split(".")[3] for name in names(last.policy) if ".layers." in name} == {"1", "2", "3"}
    assert list(first.held) == [0]
    assert "lm.model.norm.weight" in names(last.policy) - names(first.policy)
    assert isinstance(first.policy.lm.lm_head, nn.Identity)
    assert sum(p.numel() for p in last.held[1].trained) == sum(p.numel() for p in last.policy.parameters())


def test_frozen_chunks_do_not_learn():
    policy = pipelines.qwen2_5_vl()
    policy.lm.model.visual.requires_grad_(False)
    chunks = pipelines.spread(policy_modules(policy), 2)
    assert cut(policy, chunks, 0).learns == (False, False, True, True)


def test_sizes_of_items():
    policy = pipelines.qwen2_5_vl()
    micro = pipelines.batch(policy, seed=3)[1]
    shown = list(dict.fromkeys(picture for row in micro.pictures for picture in row))
    patches = [picture.width * picture.height // pipelines.PATCH**2 for picture in shown]
    assert item_sizes(policy, micro) == {"vision": patches, "text": [micro.input_ids.numel()]}
    assert item_sizes(pipelines.qwen2(), micro) == {"text": [micro.input_ids.numel()]}
    assert policy_modules(policy) == (PipelineModule("vision", 4), PipelineModule("text", 4, ("vision",)))


def test_what_cannot_be_cut_is_refused():
    chunks = (Chunk("text", 0, 2, 0), Chunk("text", 2, 3, 0))
    for policy, why in [
        (Policy(tools.gpt2()), "a Policy of gpt2 cannot be cut into a pipeline: take a Policy of llama"),
        (TeacherPolicy(tools.qwen2()), "a TeacherPolicy of qwen2 cannot be cut"),
        (Policy(tools.llama(attention_dropout=0.1)), "attention_dropout=0.1 cannot be drawn .*: set it to 0"),
        (Policy(families.family("qwen3")), r"of module text have layers \[0, 1, 2\], and qwen3 has 2"),
    ]:
        with pytest.raises(ConfigError, match=why):
            cut(policy, chunks, 0)
    pictured = pipelines.qwen2_5_vl()
    pictured.lm.config.text_config.attention_dropout = 0.1
    with pytest.raises(ConfigError, match=r"attention_dropout=0.1 cannot be drawn .*: set it to 0"):
        cut(pictured, chunks, 0)
    adapted = Policy(tools.llama())
    add_lora(adapted.lm, Lora(r=2))
    with pytest.raises(ConfigError, match=r"a policy with adapters .* cannot be cut into a pipeline: set lora to null"):
        cut(adapted, chunks, 0)
    with pytest.raises(ConfigError, match="qwen2 has no module vision to be cut"):
        cut(Policy(tools.qwen2()), (*chunks[:1], Chunk("vision", 0, 1, 0)), 0)


def test_plans_of_another_batch_are_refused():
    policy = pipelines.qwen2_5_vl()
    micros = pipelines.batch(policy, seed=3)
    chunks = pipelines.spread(policy_modules(policy), 1, segments=2)
    graph = pipelines.graph_of(policy, micros, chunks)
    other = pipelines.graph_of(policy, micros, pipelines.spread(policy_modules(policy), 1))
    one = cut(policy, chunks, 0)
    one.check(graph, micros)
    with pytest.raises(PlanError, match="other chunks than the model was cut into"):
        one.check(other, micros)
    with pytest.raises(PlanError, match="the plan has 4 microbatches, and the batch 3"):
        one.check(graph, micros[:-1])
    with pytest.raises(PlanError, match=r"the plan has items \[\] of vision for microbatch 0, which has"):
        one.check(graph, micros[::-1])
