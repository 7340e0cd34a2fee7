"""One role that learns: its steps, schedule, optimizers, adapters, weights under Hugging Face names, and bad losses."""

import contextlib
import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stepstack.batching.collate import collate
from stepstack.batching.config import BatchLayout
from stepstack.config import ConfigError
from stepstack.core.config import AdamW, Lora, Muon, Schedule, TrainableConfig
from stepstack.core.optim import optimizers
from stepstack.core.run import Run
from stepstack.core.trainable import NonFiniteGradient, Trainable
from stepstack.core.types import LossOut
from stepstack.loops import ppo, supervised
from stepstack.loops.supervised import likelihood
from stepstack.models.lm import pretrained, tiny
from stepstack.models.lm.config import Pretrained
from stepstack.models.lm.policy import Policy
from stepstack.models.lm.value import Value
from stepstack.rl.roles import Roles
from tests import tools
from tests.system.processes import rows

MICRO = collate(tools.rows([(4, 6), (3, 5)]), True, "cpu")


def square(module, micro) -> LossOut:
    value = module(micro.input_ids, micro.position_ids, micro.select)
    return LossOut(total=((value - 1.0) ** 2).sum(), count=micro.count, work=micro.work, metrics={"value": value.sum()})


def poisoned(module, micro) -> LossOut:
    out = likelihood(module, micro)
    return replace(out, total=out.total * math.nan)


def policy(tmp_path, lm=None, run=None, **cfg):
    run = run or tools.make_run(tmp_path)
    return run.trainable("actor", Policy(lm or tools.qwen2()), TrainableConfig(**cfg), total_updates=100)


# -- steps ----------------------------------------------------------------------------------------------------------


def test_critic_and_actor_count_their_own_updates(tmp_path):
    """12 and 1 a rollout; a warm-up of 50 updates ends in the 5th rollout and in the 50th."""
    run = tools.make_run(tmp_path)
    warm = TrainableConfig(optim=AdamW(lr=1e-3, schedule=Schedule(warmup=50)))
    actor = run.trainable("actor", Policy(tools.qwen2()), warm, total_updates=100)
    critic = run.trainable("critic", Value(tools.qwen2()), warm, total_updates=1200)
    full = {}
    for rollout in range(1, 51):
        for role, trainable, loss, updates in (("critic", critic, square, 12), ("actor", actor, likelihood, 1)):
            for _ in range(updates if rollout <= 5 else 1):
                trainable.update([MICRO], loss, 11)
            if math.isclose(trainable.standing()["lr"], 1e-3):
                full.setdefault(role, rollout)
        if rollout == 1:
            counts = {r: t.optimizers[0].state[t.parameters[0]]["step"].item() for r, t in run.trainables.items()}
            assert counts == {"actor": 1, "critic": 12}
            assert (actor.updates, critic.updates) == (1, 12)
    assert full == {"critic": 5, "actor": 50}


@pytest.mark.parametrize(
    ("kind", "final", "expected"),
    [
        ("constant", 0.0, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", 0.3, [0.25, 0.5, 0.75, 1.0, 1.0, 0.825, 0.65, 0.475]),
        ("linear", 0.0, [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [0.25, 0.5, 0.75, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
        ("cosine", 0.5, [0.25, 0.5, 0.75, 1.0, 1.0, 0.926777, 0.75, 0.573223]),
    ],
)
def test_schedules(kind, final, expected):
    schedule = Schedule(kind=kind, warmup=4, final=final)
    assert [schedule.factor(u, 8) for u in range(8)] == pytest.approx(expected, abs=1e-6)
    assert schedule.factor(20, 8) == pytest.approx(1.0 if kind == "constant" else final)  # beyond the end it stays


def test_a_schedule_without_warm_up_starts_at_the_peak():
    assert Schedule().factor(0, 10) == 1.0
    assert Schedule(kind="linear", final=0.3).factor(0, 10) == 1.0


def test_one_step_is_torchs_step(tmp_path):
    """Sum over tokens / denominator, gradients clipped at 1, AdamW with ORZ's betas."""
    trainable, lm = policy(tmp_path, optim=AdamW(lr=1e-3)), tools.qwen2()
    metrics = trainable.update([MICRO], likelihood, denominator=11)
    adam = torch.optim.AdamW(lm.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    loss = likelihood(Policy(lm), MICRO).total / 11
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
    adam.step()
    assert metrics["actor/loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert metrics["actor/grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert norm > 1.0  # so clipping has been seen
    for (name, found), expected in zip(trainable.named_weights(), lm.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6, msg=name)


def test_an_update_in_parts_has_the_gradient_of_one_in_a_piece(tmp_path, monkeypatch):
    """loops/stream.py sums up what arrives, and divides at the end by what it then knows. Twice, so that nothing of the
    first update is left in the second."""
    seen: dict[str, list] = {}

    def step(self, loss):
        seen.setdefault(self.role, []).append(([p.grad.clone() for p in self.parameters], loss))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return {"grad_norm": 0.0}

    monkeypatch.setattr(Trainable, "_step", step)
    run = tools.make_run(tmp_path)
    whole, parts = (run.trainable(role, Policy(tools.qwen2()), TrainableConfig(), 9) for role in ("actor", "critic"))
    micros = [collate([row], True, "cpu") for row in tools.rows([(4, 6), (3, 5), (7, 2)])]
    for _ in range(2):
        metrics = whole.update(micros, likelihood, 13)
        for micro in micros:
            parts.accumulate([micro], likelihood)
        summed = parts.finish_update(13)
        assert summed.keys() == {name.replace("actor", "critic") for name in metrics}
        assert summed["critic/loss"] == pytest.approx(metrics["actor/loss"], rel=1e-6)
    for (expected, loss), (found, other) in zip(seen["actor"], seen["critic"], strict=True):
        assert other == pytest.approx(loss, rel=1e-6)
        for a, b in zip(expected, found, strict=True):
            assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_metrics_are_means_over_tokens_of_unequal_micro_batches(tmp_path):
    """Not means of micro-batch means, and not divided by the number of micro-batches."""
    micros = [collate(tools.rows(shape, seed=s), True, "cpu") for s, shape in enumerate([[(3, 2)], [(3, 30), (4, 8)]])]
    lm = tools.qwen2()
    outs = [likelihood(Policy(lm), micro) for micro in micros]
    found = policy(tmp_path, lm=lm).update(micros, likelihood, denominator=40)
    assert found["actor/loss"] == pytest.approx(sum(o.total.item() for o in outs) / 40, rel=1e-6)
    assert found["actor/entropy"] == pytest.approx(sum(o.metrics["entropy"].item() for o in outs) / 40, rel=1e-6)


def test_a_blank_micro_batch_weighs_nothing(tmp_path):
    blank = collate(tools.rows([(4, 6)], seed=9), True, "cpu", blank=True)
    weights, metrics = [], []
    for i, micros in enumerate(([MICRO], [MICRO, blank], [blank, MICRO])):
        trainable = policy(tmp_path / str(i), optim=AdamW(lr=1e-2))
        metrics.append(trainable.update(micros, likelihood, 11))
        weights.append([p.clone() for p in trainable.parameters])
    assert metrics[0] == metrics[1] == metrics[2]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*weights, strict=True))


# -- optimizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [AdamW(), Muon()])
@pytest.mark.parametrize("make", [tools.qwen2, tools.llama, tools.gpt2])
@pytest.mark.parametrize("wrap", [Policy, Value])
def test_optimizers_cover_each_parameter_once(cfg, make, wrap):
    module = wrap(make())
    made = optimizers(module, cfg)
    covered = [id(p) for o in made for g in o.param_groups for p in g["params"]]
    assert sorted(covered) == sorted(id(p) for p in module.parameters())
    if isinstance(cfg, Muon):
        names = {id(p): n for n, p in module.named_parameters()}
        by_muon = {names[id(p)] for g in made[0].param_groups for p in g["params"]}
        assert by_muon
        assert not any(word in n for n in by_muon for word in ("embed", "norm", "bias", "head", "wte", "wpe", "ln_"))


def test_muon_and_adamw_follow_one_schedule_from_their_own_peaks(tmp_path):
    trainable = policy(tmp_path, optim=Muon(lr=0.02, adamw_lr=3e-3, schedule=Schedule(warmup=4)))
    trainable.update([MICRO], likelihood, 11)
    assert [o.param_groups[0]["lr"] for o in trainable.optimizers] == pytest.approx([0.005, 0.00075])


# -- adapters -------------------------------------------------------------------------------------------------------


def test_only_adapters_train_and_what_they_learn_is_merged(tmp_path):
    lm = tools.qwen2()
    original = {name: p.detach().clone() for name, p in lm.named_parameters()}
    trainable = policy(tmp_path, lm=lm, optim=AdamW(lr=1e-2), lora=Lora(r=4, alpha=8))
    trained = {n for n, p in trainable.module.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_A." in n or ".lora_B." in n for n in trained)
    before = dict(trainable.named_weights())
    assert list(before) == list(original)  # Hugging Face's names, in its order
    assert all(torch.equal(before[n], original[n]) for n in original)  # a new adapter changes nothing
    for _ in range(3):
        trainable.update([MICRO], likelihood, 11)
    with torch.no_grad():
        adapted = likelihood(trainable.module, MICRO).total
        changed = dict(trainable.named_weights())
        plain = tools.qwen2(seed=1)
        plain.load_state_dict(changed, strict=False)
        torch.testing.assert_close(likelihood(Policy(plain), MICRO).total, adapted, rtol=1e-5, atol=0)
    moved = {n for n in original if not torch.equal(changed[n], original[n])}
    assert moved == {n for n in original if n.endswith("_proj.weight")}


def test_merged_adapters_equal_pefts_own_merge(tmp_path):
    lm = tools.qwen2()
    theirs = get_peft_model(copy.deepcopy(lm), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    trainable = policy(tmp_path, lm=lm, lora=Lora(r=4, alpha=8))
    own = dict(trainable.module.lm.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.base_model.model.named_parameters():
            if ".lora_" in name:
                parameter.normal_()
                own[name].copy_(parameter)
    merged = dict(theirs.merge_and_unload().named_parameters())
    for name, value in trainable.named_weights():
        torch.testing.assert_close(value, merged[name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_critic_with_adapters_trains_its_head_too(tmp_path):
    run = tools.make_run(tmp_path)
    critic = run.trainable("critic", Value(tools.qwen2()), TrainableConfig(lora=Lora(r=4)), total_updates=10)
    trained = {n for n, p in critic.module.named_parameters() if p.requires_grad}
    assert "value_head.weight" in trained
    assert all(".lora_" in n for n in trained - {"value_head.weight"})
    assert len(trained) > 1


def test_targets_that_match_nothing_are_an_error(tmp_path):
    with pytest.raises((ConfigError, ValueError), match="no_such"):
        policy(tmp_path, lora=Lora(targets=("no_such_proj",)))


@pytest.mark.parametrize("make", [tools.qwen2, tools.llama])
@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_an_export_loads_with_transformers(tmp_path, make, lora):
    lm = make()
    trainable = policy(tmp_path, lm=lm, optim=AdamW(lr=1e-2), lora=lora)
    for _ in range(2):
        trainable.update([MICRO], likelihood, 11)
    folder = trainable.run.export("actor", tmp_path / "model", tiny.tokenizer())
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is type(make())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainable.module.lm.eval()(ids).logits, atol=2e-5, rtol=1e-5)
        assert (loaded(ids).logits - make()(ids).logits).abs().max() > 1e-3
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_a_bfloat16_model_that_learns_in_float32_is_exported_in_bfloat16(tmp_path, lora):
    tools.qwen2().bfloat16().save_pretrained(tmp_path / "start")
    lm = pretrained.load(Pretrained(path=str(tmp_path / "start")))
    trainable = policy(tmp_path, lm=lm, optim=AdamW(lr=1e-2), lora=lora)
    trainable.update([MICRO], likelihood, 11)
    folder = trainable.run.export("actor", tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    saved = load_file(folder / "model.safetensors")
    learned = dict(trainable.named_weights())
    assert {value.dtype for value in learned.values()} == {torch.float32}
    assert all(torch.equal(value, learned[name].bfloat16()) for name, value in saved.items())
    assert any((value.float() != learned[name]).any() for name, value in saved.items())  # it was more before


# -- what must not happen -------------------------------------------------------------------------------------------


def test_a_nan_loss_skips_the_step_and_is_counted(tmp_path):
    trainable = policy(tmp_path, optim=AdamW(lr=1e-2))
    trainable.update([MICRO], likelihood, 11)
    before = [p.clone() for p in trainable.parameters]
    metrics = trainable.update([MICRO], poisoned, 11)
    assert math.isnan(metrics["actor/loss"])
    assert all(torch.equal(p, b) for p, b in zip(trainable.parameters, before, strict=True))
    assert trainable.standing() | {"lr": 0} == {"lr": 0, "updates": 1, "skipped": 1}
    good = trainable.update([MICRO], likelihood, 11)
    assert math.isfinite(good["actor/grad_norm"])  # nothing of the bad gradient is left
    assert trainable.updates == 2
    assert trainable.skipped_in_a_row == 0


def test_a_nan_in_one_of_several_micro_batches_skips_the_step(tmp_path):
    trainable = policy(tmp_path)
    other = collate(tools.rows([(4, 6)], seed=9), True, "cpu")
    before = [p.clone() for p in trainable.parameters]
    trainable.update([other, MICRO], lambda m, micro: (poisoned if micro is MICRO else likelihood)(m, micro), 11)
    assert trainable.skipped == 1
    assert all(torch.equal(p, b) for p, b in zip(trainable.parameters, before, strict=True))


def test_too_many_bad_losses_in_a_row_stop_the_run(tmp_path):
    run = tools.make_run(tmp_path, max_skipped=3)
    trainable = policy(tmp_path, run=run)
    before = [p.clone() for p in trainable.parameters]
    for _ in range(2):
        trainable.update([MICRO], poisoned, 11)
    trainable.update([MICRO], likelihood, 11)  # a good one begins the count anew
    after = [p.clone() for p in trainable.parameters]
    for _ in range(2):
        trainable.update([MICRO], poisoned, 11)
    with pytest.raises(NonFiniteGradient, match="3 updates in a row"):
        trainable.update([MICRO], poisoned, 11)
    assert trainable.skipped == 5
    assert all(torch.equal(p, a) for p, a in zip(trainable.parameters, after, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_an_infinite_loss_skips_the_step_though_its_gradient_is_finite(tmp_path):
    trainable = policy(tmp_path)
    before = [p.clone() for p in trainable.parameters]

    def infinite(module, micro):
        out = likelihood(module, micro)
        return replace(out, total=out.total + math.inf)

    assert trainable.update([MICRO], infinite, 11)["actor/loss"] == math.inf
    assert (trainable.skipped, trainable.updates) == (1, 0)
    assert all(torch.equal(p, b) for p, b in zip(trainable.parameters, before, strict=True))


def test_a_training_that_ends_on_a_skipped_update_exports_nothing(tmp_path):
    run = tools.make_run(tmp_path)
    trainable = policy(tmp_path, run=run)
    trainable.update([MICRO], poisoned, 11)
    with pytest.raises(NonFiniteGradient, match="1 updates in a row"):
        run.export("actor", run.dir / "model")
    assert not (run.dir / "model").exists()
    trainable.update([MICRO], likelihood, 11)
    assert run.export("actor", run.dir / "model").is_dir()


def test_a_weight_that_is_not_finite_exports_nothing(tmp_path):
    run = tools.make_run(tmp_path)
    trainable = policy(tmp_path, run=run)
    with torch.no_grad():
        trainable.parameters[3][0] = math.inf
    with pytest.raises(NonFiniteGradient, match=r"is not finite after update 0: no model is exported"):
        run.export("actor", run.dir / "model")
    assert not (run.dir / "model").exists()


@pytest.mark.parametrize("limit", [None, 1e-3])
def test_gradients_are_clipped_where_there_is_a_limit(tmp_path, limit):
    trainable = policy(tmp_path, optim=AdamW(lr=0.0), clip=limit)
    seen = []
    trainable.optimizers[0].register_step_pre_hook(
        lambda optimizer, *_: seen.append(math.sqrt(sum(float(p.grad.square().sum()) for p in trainable.parameters)))
    )
    size = trainable.update([MICRO], likelihood, 11)["actor/grad_norm"]
    assert size > 1e-2
    assert seen == [pytest.approx(size if limit is None else limit, rel=1e-3)]


def test_a_critic_learns_a_constant_reward(tmp_path):
    run = tools.make_run(tmp_path)
    critic = run.trainable("critic", Value(tools.qwen2()), TrainableConfig(optim=AdamW(lr=1e-2)), total_updates=60)
    for _ in range(60):
        metrics = critic.update([MICRO], square, 11)
    assert metrics["critic/loss"] < 1e-3
    assert metrics["critic/value"] == pytest.approx(1.0, abs=0.05)


def test_weights_that_learn_in_bfloat16_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"actor: 2\d of the weights that are trained are torch.bfloat16, such as lm"):
        policy(tmp_path, tools.qwen2().bfloat16())


def test_adapters_of_a_bfloat16_model_learn_in_float32(tmp_path):
    trainable = policy(tmp_path, tools.qwen2().bfloat16(), optim=AdamW(lr=1e-6), lora=Lora(r=4))
    assert {p.dtype for p in trainable.parameters} == {torch.float32}
    before = [p.detach().clone() for p in trainable.parameters]
    trainable.update([MICRO], likelihood, 11)
    trainable.update([MICRO], likelihood, 11)
    moved = [not torch.equal(p, b) for p, b in zip(trainable.parameters, before, strict=True)]
    assert all(moved)


# -- dropout --------------------------------------------------------------------------------------------------------


def dropping(where: str, share: float = 0.2):
    """A model that drops out ``share`` of something, and the adapters it is to have."""
    lm = tools.gpt2() if where == "modules" else tools.qwen2()
    for module in lm.modules():
        if where == "modules" and isinstance(module, torch.nn.Dropout):
            module.p = share
        if where == "attention" and hasattr(module, "attention_dropout"):
            module.attention_dropout = module.config.attention_dropout = share
    return lm, Lora(r=4, dropout=share) if where == "adapters" else None


def tuned(folder, where="modules", share=0.2, seed=1, stop_after=None, **cfg):
    """(metrics of each step, weights) of a supervised run of six steps, or of its part up to ``stop_after``."""
    run = Run(tools.config(folder, seed=seed), stop_after=stop_after)
    lm, lora = dropping(where, share)
    run.reseed()  # as a recipe does, whatever its model drew from
    cfg = TrainableConfig(optim=AdamW(lr=1e-2), lora=lora, **cfg)
    trainable = run.trainable("policy", Policy(lm), cfg, total_updates=6)
    with pytest.raises(SystemExit) if stop_after else contextlib.nullcontext():
        supervised.train(
            run, policy=trainable, rows=lambda step: tools.rows([(4, 6), (3, 5)]), steps=6, layout=BatchLayout()
        )
    return rows(run.dir), dict(trainable.named_weights())


def losses(of):
    return [row["policy/loss"] for row in of]


@pytest.mark.parametrize("where", ["modules", "attention", "adapters"])
def test_dropout_is_trained_with_and_depends_on_the_seed(tmp_path, where):
    found, weights = tuned(tmp_path / "one", where)
    again, same = tuned(tmp_path / "again", where)
    assert losses(again) == losses(found)
    assert all(torch.equal(same[name], value) for name, value in weights.items())
    other, _ = tuned(tmp_path / "other", where, seed=2)
    assert losses(other)[1:] != losses(found)[1:]  # an adapter's B begins at 0: what it drops shows from step 2 on
    still, _ = tuned(tmp_path / "still", where, share=0.0)
    assert losses(still)[1:] != losses(found)[1:]
    assert losses(found)[-1] < 0.9 * losses(found)[0]


@pytest.mark.parametrize("where", ["modules", "attention", "adapters"])
def test_gradient_checkpointing_drops_the_same_again(tmp_path, where):
    plain, weights = tuned(tmp_path / "plain", where)
    again, found = tuned(tmp_path / "again", where, gradient_checkpointing=True)
    assert losses(again) == pytest.approx(losses(plain), rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_resumed_run_goes_on_in_the_random_numbers_of_its_dropout(tmp_path):
    whole, weights = tuned(tmp_path / "whole")
    tuned(tmp_path / "cut", stop_after=2)
    torch.manual_seed(99)
    found, resumed = tuned(tmp_path / "cut")
    assert losses(found) == losses(whole)
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())


@pytest.mark.parametrize("role", ["actor", "critic"])
@pytest.mark.parametrize("where", ["modules", "attention", "adapters"])
def test_ppo_refuses_dropout(tmp_path, where, role):
    run = tools.make_run(tmp_path)
    (lm, lora), quiet = dropping(where), tools.qwen2()
    models = {"actor": quiet, "critic": quiet} | {role: lm}
    roles = {
        name: run.trainable(name, wrap(models[name]), TrainableConfig(lora=lora if name == role else None), 10)
        for name, wrap in (("actor", Policy), ("critic", Value))
    }
    nobody: Any = None
    models = Roles(roles["actor"], roles["critic"], None)
    with pytest.raises(ConfigError, match=rf"{role}: .*would make log-probabilities .* differ: set it to 0"):
        ppo.train(run, roles=models, generator=nobody, prompts=nobody, reward=nobody, evaluate=dict)
    assert not run.metrics_file.exists()
