"""Packed rows of many families of models: kept apart, or refused by name."""

import pytest

from stepstack.batching.config import BatchLayout
from stepstack.batching.leaks import refuse_leaks
from stepstack.config import ConfigError
from stepstack.core.config import Lora, TrainableConfig
from stepstack.models.lm.policy import Policy
from tests import tools
from tests.families import APART, LEAKING, family


def policy(tmp_path, lm, **cfg):
    run = tools.make_run(tmp_path)
    return run, run.trainable("actor", Policy(lm), TrainableConfig(**cfg), total_updates=1)


@pytest.mark.parametrize("name", APART)
def test_a_family_whose_rows_stay_apart_is_packed(tmp_path, name):
    run, actor = policy(tmp_path, family(name))
    actor.module.train()
    refuse_leaks(run, actor, BatchLayout(pack=True))
    assert actor.module.training


@pytest.mark.parametrize("name", LEAKING)
def test_a_family_that_leaks_is_refused_by_name(tmp_path, name):
    run, actor = policy(tmp_path, family(name))
    with pytest.raises(ConfigError, match=rf"layout\.pack=true: {name} lets a packed row see the one in front"):
        refuse_leaks(run, actor, BatchLayout(pack=True))
    refuse_leaks(run, actor, BatchLayout(pack=False))


def test_dropout_is_no_leak(tmp_path):
    run, actor = policy(tmp_path, tools.qwen2(), lora=Lora(r=4, dropout=0.5))
    actor.module.train()
    refuse_leaks(run, actor, BatchLayout(pack=True))
