"""The preference loop on a tiny model: its denominators, its start, its figures, resume."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from stepstack.batching.config import BatchLayout
from stepstack.batching.pairs import Pair, pair_minibatch
from stepstack.batching.reference import start_copy, with_reference
from stepstack.batching.stream import RowStream
from stepstack.config import ConfigError, Save
from stepstack.core.config import AdamW, Lora, TrainableConfig
from stepstack.core.run import Run
from stepstack.loops import preference
from stepstack.models.lm.policy import Policy
from stepstack.tuning.config import DpoStage, PreferenceLoss
from tests import tools

SHAPES = [(3, 4), (3, 6), (2, 5), (2, 2), (5, 5), (5, 1), (4, 9), (4, 3), (2, 7), (2, 8), (1, 3), (1, 5)]
SMOOTH = TrainableConfig(optim=AdamW(lr=3e-3, eps=1e-4))


def pairs() -> list[Pair]:
    rows = tools.rows(SHAPES)
    return [
        Pair(i, won, replace(lost, prompt_ids=won.prompt_ids))
        for i, (won, lost) in enumerate(zip(rows[::2], rows[1::2], strict=True))
    ]


def trained(folder, *, layout=None, cfg=None, policy=SMOOTH, steps=6, stop_after=None, start=0, how="cached") -> Run:
    kind = DpoStage(steps=steps, batch=4, policy=policy, loss=cfg or PreferenceLoss(sft=0.2), reference=how)
    layout = layout or BatchLayout(max_tokens=10_000)
    run = Run(tools.config(folder, save=Save(every=2)), stop_after=stop_after)
    module = Policy(tools.qwen2())
    beside = start_copy(run, Policy(tools.qwen2(seed=start)), kind)
    trainable = run.trainable("policy", module, policy, steps)
    rows, reference = with_reference(run, trainable, pairs(), kind, layout, beside)
    stream = RowStream(rows, 4, seed=0)
    preference.train(
        run,
        policy=trainable,
        minibatch=lambda step: pair_minibatch(run, stream.take(step), layout),
        loss=lambda batch: preference.token_loss(kind.loss, batch, reference),
        steps=steps,
    )
    return run


def rows(run: Run) -> list[dict]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.trainables["policy"].named_weights()}


def test_it_begins_at_ln_2_and_winners_gain(tmp_path):
    run = trained(tmp_path, cfg=PreferenceLoss(), steps=12)
    first, *_, last = rows(run)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in ("chosen_reward", "rejected_reward", "margin"):
        assert abs(first[f"policy/{name}"]) < 1e-5
    assert last["policy/right"] == 1
    assert last["policy/chosen_reward"] > last["policy/rejected_reward"] + 1
    assert last["tokens"] == sum(
        map(len, (row for pair in RowStream(pairs(), 4, 0).take(11) for row in (pair.chosen, pair.rejected)))
    )


@pytest.mark.parametrize(
    "layout",
    [
        BatchLayout(max_tokens=40),
        BatchLayout(pack=True),
        BatchLayout(pack=True, max_tokens=40),
        BatchLayout(share_prompts=True),
        BatchLayout(share_prompts=True, max_tokens=40),
        BatchLayout(share_prompts=True, pack=True),
    ],
)
def test_micro_batches_and_packing_change_nothing(tmp_path, layout):
    whole, cut = trained(tmp_path / "a"), trained(tmp_path / "b", layout=layout)
    for a, b in zip(rows(whole), rows(cut), strict=True):
        for name in ("loss", "policy/chosen_logp", "policy/rejected_reward", "policy/grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-4), name
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], value, atol=2e-5, rtol=1e-4)


def test_a_resumed_run_is_the_same_run(tmp_path):
    whole = trained(tmp_path / "whole")
    with pytest.raises(SystemExit):
        trained(tmp_path / "cut", stop_after=3)
    cut = trained(tmp_path / "cut")
    assert cut.resumed_from == 3
    for name, value in weights(whole).items():
        assert torch.equal(weights(cut)[name], value), name


def test_every_source_of_the_reference_gives_the_same_run(tmp_path):
    runs = [trained(tmp_path / how, how=how) for how in ("cached", "model")]
    for name, value in weights(runs[0]).items():
        torch.testing.assert_close(weights(runs[1])[name], value, atol=1e-5, rtol=1e-5)
    adapters = TrainableConfig(optim=AdamW(lr=3e-3, eps=1e-4), lora=Lora(r=4))
    runs = [trained(tmp_path / f"lora-{how}", how=how, policy=adapters) for how in ("cached", "model")]
    for name, value in weights(runs[0]).items():
        torch.testing.assert_close(weights(runs[1])[name], value, atol=1e-5, rtol=1e-5)
    assert rows(runs[0])[-1]["policy/chosen_reward"] != 0


def test_a_start_that_is_not_the_reference_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the reference is not the model that training starts from"):
        trained(tmp_path, how="model", start=1)
    assert not (tmp_path / "test" / "checkpoints").exists()


def test_simpo_needs_no_reference(tmp_path):
    first, *_, last = rows(trained(tmp_path, cfg=PreferenceLoss(type="simpo", beta=2.0), steps=12))
    assert last["loss"] < first["loss"]
    assert "policy/chosen_reward" not in last


def test_dropout_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="would make the policy differ from its reference"):
        trained(tmp_path, policy=TrainableConfig(lora=Lora(r=2, dropout=0.1)))
