"""Learning rates of groups of parameters by their names: their factors, the schedule, and what no name holds."""

import pytest
import torch

from stepstack.config import ConfigError, Scale
from stepstack.core.adapters import add_lora
from stepstack.core.config import AdamW, Lora, Muon, Schedule, TrainableConfig
from stepstack.core.muon import MuonOptimizer
from stepstack.core.optim import optimizers, resolve_optimizer
from stepstack.models.lm.policy import Policy
from tests import tools


def test_each_group_has_its_factor():
    policy = Policy(tools.qwen2())
    [plain] = optimizers(policy, AdamW(lr=1e-3))
    assert [group["lr"] for group in plain.param_groups] == [1e-3]
    [grouped] = optimizers(policy, AdamW(lr=1e-3, lr_factors={"embed_tokens": 5.0, "norm": 0.5}))
    assert [group["peak_lr"] for group in grouped.param_groups] == pytest.approx([1e-3, 5e-3, 5e-4])
    table = policy.lm.get_input_embeddings().weight
    assert [any(p is table for p in group["params"]) for group in grouped.param_groups] == [False, True, False]
    counts = [sum(len(group["params"]) for group in o.param_groups) for o in (plain, grouped)]
    assert counts[0] == counts[1] == len(list(policy.parameters()))


def test_a_name_that_no_parameter_has():
    with pytest.raises(ConfigError, match="'embd'"):
        optimizers(Policy(tools.qwen2()), AdamW(lr_factors={"embd": 5.0}))


def test_muon_of_adapters_leaves_nothing_to_adamw():
    """All that learns are matrices; where none does, Muon has nothing."""
    policy = Policy(tools.qwen2())
    add_lora(policy.lm, Lora(r=2, targets=("q_proj",)))
    [by_matrix] = optimizers(policy, Muon(lr=0.02))
    assert isinstance(by_matrix, MuonOptimizer)
    [rest] = optimizers(torch.nn.LayerNorm(3), Muon(adamw_lr=0.01))
    assert [group["peak_lr"] for group in rest.param_groups] == [0.01]


def test_groups_are_scheduled_and_move_by_their_factor(tmp_path):
    """AdamW's first step is its learning rate a weight, so a group of five times the rate moves five times as far."""
    optim = AdamW(lr=1e-3, lr_factors={"embed_tokens": 5.0}, schedule=Schedule(warmup=2))
    assert resolve_optimizer(optim, Scale()) is optim
    run = tools.make_run(tmp_path)
    policy = run.trainable("policy", Policy(tools.qwen2()), TrainableConfig(optim=optim), 10)
    before = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    [optimizer] = policy.optimizers
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: (p - before[name]).abs().max().item() for name, p in policy.module.named_parameters()}
    table = next(name for name in moved if "embed_tokens" in name)
    other = next(name for name in moved if "q_proj.weight" in name)
    assert moved[table] / moved[other] == pytest.approx(5, rel=0.02)
