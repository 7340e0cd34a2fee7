"""A model that FSDP2 would not train as one process does is refused by name."""

from __future__ import annotations

import pytest
import torch

from stepstack.config import ConfigError
from stepstack.core import sharding, trainable
from stepstack.core.config import AdamW, TrainableConfig
from stepstack.core.optim import optimizers
from stepstack.models.lm.policy import Policy
from tests import tools


def test_buffers_among_the_weights_are_refused():
    module = Policy(tools.qwen2())
    module.lm.register_buffer("scale", torch.ones(1))
    with pytest.raises(ConfigError, match=r"actor: Policy keeps buffers in its weights \(lm\.scale\), which FSDP2"):
        sharding.shard(None, module, "actor")


def test_tied_weights_that_come_untied_are_refused(monkeypatch):
    def untying(accelerator, module):
        head = module.lm.lm_head
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        return module

    monkeypatch.setattr(sharding, "fsdp2_prepare_model", untying)
    with pytest.raises(
        ConfigError, match=r"critic: sharding Policy changed its parameters \(lm\.lm_head\.weight\): tied"
    ):
        sharding.shard(None, Policy(tools.qwen2()), "critic")


def test_a_parameter_in_no_optimizer_is_refused(tmp_path, monkeypatch):
    def forgetful(module, cfg):
        made = optimizers(module, cfg)
        made[0].param_groups[0]["params"].pop()
        return made

    monkeypatch.setattr(trainable, "optimizers", forgetful)
    run = tools.make_run(tmp_path)
    with pytest.raises(RuntimeError, match=r"actor: 1 parameters are not in exactly one optimizer: \['lm\.model\.norm"):
        run.trainable("actor", Policy(tools.qwen2()), TrainableConfig(optim=AdamW(lr=1e-2)), 10)
