"""The policy's and the critic's forward: packing, chunks, temperature, what a new model says."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stepstack.batching.collate import collate
from stepstack.core import hf
from stepstack.models.lm import policy as policy_module
from stepstack.models.lm import tiny
from stepstack.models.lm.policy import Policy, token_logprobs
from stepstack.models.lm.value import Value
from tests import tools

ROWS = tools.rows([(12, 9), (3, 14), (7, 1)])


def logprobs(lm, rows, pack, temperature=1.0):
    micro = collate(rows, pack, "cpu")
    return Policy(lm)(micro.input_ids, micro.position_ids, micro.select, micro.labels, temperature)


def reference(lm, rows, temperature=1.0):
    """Row by row through the whole model, softmax of everything."""
    out = []
    for row in rows:
        ids = torch.tensor(row.prompt_ids + row.ids)
        logp = torch.log_softmax(lm(ids[None]).logits[0].float() / temperature, -1)
        at = torch.arange(len(row.prompt_ids) - 1, len(ids) - 1)
        out.append((logp[at, ids[at + 1]], -(logp[at].exp() * logp[at]).sum(-1)))
    return [torch.cat(x) for x in zip(*out, strict=True)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [tools.qwen2, tools.llama, tools.gpt2])
@pytest.mark.parametrize("pack", [True, False])
@torch.no_grad()
def test_packed_and_padded_rows_equal_each_row_alone(make, attention, pack):
    lm = make()
    lm.set_attn_implementation(attention)
    for result, expected in zip(logprobs(lm, ROWS, pack), reference(lm, ROWS), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("leak", ["use_cache", "ones mask", "no positions"])
@torch.no_grad()
def test_what_would_leak_across_packed_rows(leak):
    """Why Policy.forward passes use_cache=False and no mask: each of these attends to the rows before, by nats."""
    lm = tools.qwen2()
    micro = collate(ROWS, True, "cpu")
    batch = {"input_ids": micro.input_ids, "position_ids": micro.position_ids, "use_cache": False}
    change = {
        "use_cache": {"use_cache": True},
        "ones mask": {"attention_mask": torch.ones_like(micro.input_ids)},
        "no positions": {"position_ids": None},
    }[leak]
    logits = lm(**{**batch, **change}).logits[0]
    result = token_logprobs(logits[micro.select], micro.labels)[0]
    assert (result - reference(lm, ROWS)[0]).abs().max() > 0.1


def test_the_chunked_head_equals_the_whole_one_and_so_do_its_gradients(monkeypatch):
    lm, result = tools.qwen2(), []
    for chunk in (4096, 5):
        monkeypatch.setattr(policy_module, "MAX_LOGIT_POSITIONS", chunk)
        lm.zero_grad()
        logp, entropy = logprobs(lm, ROWS, True, temperature=0.7)
        (logp.sum() + 0.3 * entropy.sum()).backward()
        result.append([logp, entropy, *(p.grad.clone() for p in lm.parameters())])
    assert len(ROWS[0].ids + ROWS[1].ids + ROWS[2].ids) > 4 * 5  # more than one chunk
    for whole, chunked in zip(*result, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_log_probabilities_are_those_of_the_tempered_distribution():
    lm = tools.qwen2()
    for result, expected in zip(logprobs(lm, ROWS, True, 0.7), reference(lm, ROWS, 0.7), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert (logprobs(lm, ROWS, True, 0.7)[0] - logprobs(lm, ROWS, True)[0]).abs().max() > 0.3


def test_log_probabilities_are_fp32_from_bf16_logits():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    logp, entropy = token_logprobs(logits, torch.arange(6))
    assert logp.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logp, torch.log_softmax(logits.float(), -1)[torch.arange(6), torch.arange(6)])


@pytest.mark.parametrize(("vocab", "expected"), [(334, 5.811141), (384, 5.950643)])
@torch.no_grad()
def test_a_new_model_is_nearly_uniform(vocab, expected):
    assert math.log(vocab) == pytest.approx(expected, abs=1e-6)
    lm = tiny.qwen2(vocab, hidden=16, layers=2, intermediate=32, seed=0)
    assert logprobs(lm, ROWS, True)[1].mean().item() == pytest.approx(expected, abs=0.01)


def test_the_tiny_model_is_seeded():
    first, again, other = (tiny.qwen2(50, hidden=16, layers=1, intermediate=16, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_gradient_checkpointing_gives_the_same_gradients():
    result = []
    for checkpointing in (False, True):
        lm = tools.qwen2()
        if checkpointing:
            hf.enable_gradient_checkpointing(lm)
        lm.train()
        logprobs(lm, ROWS, True)[0].sum().backward()
        result.append([p.grad for p in lm.parameters()])
    for plain, checkpointed in zip(*result, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-5)


def test_a_model_that_changes_its_logits_behind_the_head_is_refused():
    lm = tools.qwen2()
    lm.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping=30"):
        Policy(lm)


# -- the critic -----------------------------------------------------------------------------------------------------


def test_the_value_head_starts_as_orz_starts_it():
    """N(0, 1/(hidden+1)) without bias: .0588 at hidden 16; the first values are near 0."""
    lm = tiny.qwen2(tools.VOCAB, hidden=16, layers=1, intermediate=16, seed=0)
    torch.manual_seed(0)
    heads = [Value(lm).value_head for _ in range(300)]
    assert all(head.bias is None for head in heads)
    weights = torch.stack([head.weight for head in heads])
    assert weights.std().item() == pytest.approx(1 / 17, rel=0.05)
    assert abs(weights.mean().item()) < 0.003
    micro = collate(ROWS, True, "cpu")
    with torch.no_grad():
        assert Value(lm)(micro.input_ids, micro.position_ids, micro.select).abs().max() < 1.0


@pytest.mark.parametrize("pack", [True, False])
@torch.no_grad()
def test_values_are_read_where_the_logits_that_score_the_action_are(pack):
    value = Value(tools.qwen2()).eval()
    micro = collate(ROWS, pack, "cpu")
    expected = []
    for row in ROWS:
        ids = torch.tensor(row.prompt_ids + row.ids)
        hidden = value.body(input_ids=ids[None]).last_hidden_state[0]
        expected.append(value.value_head(hidden)[len(row.prompt_ids) - 1 : len(ids) - 1, 0])
    result = value(micro.input_ids, micro.position_ids, micro.select)
    torch.testing.assert_close(result, torch.cat(expected), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_critic_of_bf16_weights_gives_fp32_values():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    value = Value(LlamaForCausalLM(LlamaConfig(vocab_size=tools.VOCAB, **shape)).bfloat16())
    micro = collate(ROWS, True, "cpu")
    result = value(micro.input_ids, micro.position_ids, micro.select)
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()
