"""Adapters: on disk as peft has them, switched off, and where they must not go."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from stepstack.batching.collate import collate
from stepstack.config import ConfigError
from stepstack.core.adapters import without_adapters
from stepstack.core.config import AdamW, Lora, TrainableConfig
from stepstack.loops.supervised import likelihood
from stepstack.models.lm import pretrained
from stepstack.models.lm.config import Pretrained
from stepstack.models.lm.policy import Policy
from tests import tools

IDS = torch.tensor([[5, 6, 7, 8, 9]])
MICRO = collate(tools.rows([(3, 4), (2, 6)]), pack=False, device="cpu")


def trained(tmp_path, lora: Lora, make=tools.qwen2):
    """A run whose policy has adapters that learned something, and the folder of the model that it began from."""
    lm = make()
    lm.save_pretrained(tmp_path / "start")
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    run = tools.make_run(tmp_path)
    policy = run.trainable("policy", Policy(lm), TrainableConfig(optim=AdamW(lr=3e-2), lora=lora), 3)
    for _ in range(3):
        policy.update([MICRO], likelihood, 10)
    run.export("policy", tmp_path / "model")
    return policy


def logits(lm: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return lm.eval()(IDS).logits


@pytest.mark.parametrize(
    ("make", "lora"),
    [
        (tools.qwen2, Lora(r=4, alpha=8)),
        (tools.llama, Lora(r=2, targets=("q_proj", "lm_head"))),
        (tools.llama, Lora(r=2, targets=("embed_tokens", "v_proj"))),
    ],
)
def test_peft_reads_the_adapters_and_so_does_a_new_run(tmp_path, make, lora):
    policy = trained(tmp_path, lora, make)
    want = logits(policy.module.lm)
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    assert (logits(start) - want).abs().max() > 0.05
    torch.testing.assert_close(logits(PeftModel.from_pretrained(start, tmp_path / "model-adapter")), want)
    again = pretrained.load(Pretrained(path=str(tmp_path / "start"), adapter=str(tmp_path / "model-adapter")))
    torch.testing.assert_close(logits(again), want, atol=1e-4, rtol=1e-4)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(whole), want, atol=1e-4, rtol=1e-4)


def test_without_adapters_the_model_is_the_one_it_began_as(tmp_path):
    policy = trained(tmp_path, Lora(r=4))
    want = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "start"))
    adapted = logits(policy.module.lm)
    with without_adapters(policy.module):
        torch.testing.assert_close(logits(policy.module.lm), want)
    assert torch.equal(logits(policy.module.lm), adapted)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_tied_weights_is_refused(tmp_path, target):
    with pytest.raises(ConfigError, match="both the embedding and the head"):
        trained(tmp_path, Lora(targets=(target, "q_proj")))


def test_adapters_of_another_model_are_refused(tmp_path):
    trained(tmp_path, Lora(r=4))
    tools.gpt2().save_pretrained(tmp_path / "other")
    with pytest.raises((ConfigError, ValueError)):
        pretrained.load(Pretrained(path=str(tmp_path / "other"), adapter=str(tmp_path / "model-adapter")))
    with pytest.raises(ConfigError, match=r"has no adapter_config\.json"):
        pretrained.load(Pretrained(path=str(tmp_path / "start"), adapter=str(tmp_path / "start")))
