"""Packed rows of many families of models: kept apart, or refused by name."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from stepstack.batching.collate import collate, collate_shared
from stepstack.batching.config import BatchLayout
from stepstack.batching.leaks import refuse_leaks
from stepstack.batching.shared import siblings
from stepstack.config import ConfigError
from stepstack.core.config import Lora, TrainableConfig
from stepstack.models.lm import tiny
from stepstack.models.lm.distilled import StudentPolicy
from stepstack.models.lm.policy import Policy
from stepstack.models.vision.policy import VisionPolicy
from stepstack.tuning.config import Distillation
from stepstack.tuning.distillation import divergence
from tests import tools
from tests.families import APART, LEAKING, family


def policy(tmp_path, lm, **cfg):
    run = tools.make_run(tmp_path)
    return run, run.trainable("actor", Policy(lm), TrainableConfig(**cfg), total_updates=1)


@pytest.mark.parametrize("key", ["pack", "share_prompts"])
@pytest.mark.parametrize("name", APART)
def test_a_family_whose_rows_stay_apart_is_packed_and_shares_prompts(tmp_path, name, key):
    run, actor = policy(tmp_path, family(name))
    actor.module.train()
    short = key == "share_prompts" and name == "mistral"  # its window of 4 tokens
    with pytest.raises(ConfigError, match="mistral looks back 4 tokens") if short else nullcontext():
        refuse_leaks(run, actor, BatchLayout(**{key: True}))
    assert actor.module.training != short


@pytest.mark.parametrize("name", LEAKING)
def test_a_family_that_leaks_is_refused_by_name(tmp_path, name):
    run, actor = policy(tmp_path, family(name))
    with pytest.raises(ConfigError, match=rf"layout\.pack=true: {name} lets a row see the one in front"):
        refuse_leaks(run, actor, BatchLayout(pack=True))
    refuse_leaks(run, actor, BatchLayout(pack=False))


@pytest.mark.parametrize("name", APART)
@torch.no_grad()
def test_answers_that_share_a_prompt_are_scored_as_rows_of_their_own(name):
    lm = family(name)
    windowed = name == "mistral"  # of 4 tokens
    rows = tools.rows([(5, 9), (5, 7), (5, 8), (3, 4), (3, 9)], vocab=lm.config.vocab_size, n=3)
    if windowed:
        with pytest.raises(ConfigError, match=r"mistral looks back 4 tokens, and a prompt with its answers has 29"):
            Policy(lm)(**collate_shared(siblings(rows, 100), False, "cpu").inputs())
        rows = tools.rows([(1, 1), (1, 2)], vocab=lm.config.vocab_size, n=2)
    own, *shared = (
        Policy(lm)(**micro.inputs())[0]
        for micro in (
            collate(rows, False, "cpu"),
            collate_shared(siblings(rows, 100), False, "cpu"),
            collate_shared(siblings(rows, 100), not windowed, "cpu"),
        )
    )
    for logp in shared:
        torch.testing.assert_close(logp, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["qwen3_5_text", "granitemoehybrid", "lfm2", "gpt_oss"])
def test_a_family_that_knows_no_mask_shares_no_prompts(tmp_path, name):
    run, actor = policy(tmp_path, family(name))
    words = "attention=eager takes no mask" if name == "gpt_oss" else rf"layout\.share_prompts=true: {name} lets a row"
    with pytest.raises(ConfigError, match=words):
        refuse_leaks(run, actor, BatchLayout(share_prompts=True))


@pytest.mark.parametrize("name", ["qwen2", "falcon"])
def test_a_student_beside_a_teacher_is_tested_too(tmp_path, name):
    run = tools.make_run(tmp_path)
    student = StudentPolicy(family(name), partial(divergence, Distillation()))
    actor = run.trainable("actor", student, TrainableConfig(), total_updates=1)
    with pytest.raises(ConfigError, match="falcon lets") if name == "falcon" else nullcontext():
        refuse_leaks(run, actor, BatchLayout(pack=True))


def test_a_model_with_eyes_is_tested_without_pictures(tmp_path):
    run = tools.make_run(tmp_path)
    lm = tiny.qwen2_5_vl(tiny.tokenizer(special=(*tiny.CHAT, *tiny.VISION)), seed=0)
    actor = run.trainable("actor", VisionPolicy(lm, None, ()), TrainableConfig(), total_updates=1)
    refuse_leaks(run, actor, BatchLayout(pack=True))


def test_dropout_is_no_leak(tmp_path):
    run, actor = policy(tmp_path, tools.qwen2(), lora=Lora(r=4, dropout=0.5))
    actor.module.train()
    refuse_leaks(run, actor, BatchLayout(pack=True))
