"""Our GRPO against TRL's GRPOTrainer: the same model and the same rollouts, through one real training step of each."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from stepstack.batching.config import BatchLayout
from stepstack.batching.minibatch import minibatches
from stepstack.batching.rows import Batch, Row
from stepstack.core.config import AdamW, TrainableConfig
from stepstack.generation.types import Sampling
from stepstack.models.lm.policy import Policy
from stepstack.rl import update
from stepstack.rl.config import Grpo, Kl, PolicyLoss, RolloutConfig
from tests import tools

TEMPERATURE, LENGTH, N, LR = 0.8, 16, 4, 1e-3
TOKENIZER = tools.bpe_tokenizer()
# The third group has no differences. Completions of 1 to 16 tokens, some ended by <eos> (id 1), prompts uneven.
REWARDS = [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0]]
PROMPTS = ["1 + 1 =", "the sum of 2 and 3 is", "7"]


def rollouts() -> list[Row]:
    rng, made = random.Random(0), []
    for group, text in enumerate(PROMPTS):
        for sample in range(N):
            ids = [rng.randrange(2, len(TOKENIZER)) for _ in range((1, 16, 9, 4)[(group + sample) % 4])]
            ids = [*ids[:-1], 1] if sample % 2 else ids
            index = group * N + sample
            of = (index, tuple(TOKENIZER.encode(text)), tuple(ids), REWARDS[group][sample], group, sample)
            made.append(Row(*of, fields={"sampler": torch.zeros(len(ids))}))
    return made


ROWS = rollouts()


def model():
    return tools.qwen2(len(TOKENIZER), scale=0.1).train()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """One step of TRL: its prepared inputs, its trainer, its weights after the step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func
        return one_step(str(tmp_path_factory.mktemp("trl")))


def trl_config(folder):
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=folder,
        report_to="none",
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        per_device_train_batch_size=len(ROWS),
        num_generations=N,
        max_completion_length=LENGTH,
        max_steps=1,
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
        temperature=TEMPERATURE,
        beta=0.0,
        loss_type="dapo",
        learning_rate=LR,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        epsilon=0.2,
        use_bias_correction_kl=False,
    )


def one_step(folder):
    from datasets import Dataset
    from trl import GRPOTrainer

    score = {row.ids: row.reward for row in ROWS}
    given: Counter[str] = Counter()
    seen = []

    def rollout(prompts, trainer):
        rows = []
        for text in prompts:
            rows.append(ROWS[PROMPTS.index(text) * N + given[text]])
            given[text] += 1
        return {
            "prompt_ids": [list(row.prompt_ids) for row in rows],
            "completion_ids": [list(row.ids) for row in rows],
            "logprobs": [[0.0] * len(row.ids) for row in rows],
        }

    class Spied(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            seen.append(inputs)
            return super()._compute_loss(model, inputs)

    trainer = Spied(
        model=model(),
        reward_funcs=lambda completion_ids, **_: [score[tuple(ids)] for ids in completion_ids],
        args=trl_config(folder),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=TOKENIZER,
        rollout_func=rollout,
    )
    trainer.train()
    [inputs] = seen
    after = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.model.load_state_dict(model().state_dict())
    trainer.model.eval()
    return SimpleNamespace(trainer=trainer, inputs=inputs, after=after, log=trainer.state.log_history[0])


def rows_of(inputs) -> list[Row]:
    """Our rows in the order in which TRL has shuffled them."""
    known = {row.ids: row for row in ROWS}
    ids = [
        tuple(i[m.bool()].tolist()) for i, m in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    ]
    return [known[i] for i in ids]


def flat(inputs, padded_BT):
    """TRL's [B, T] as our [N]."""
    return padded_BT[inputs["completion_mask"].bool()]


def ours(tmp_path, rows, *, layout=None, kl=0.0, **loss):
    rollout = RolloutConfig(prompts=3, sampling=Sampling(n=N, max_tokens=LENGTH, temperature=TEMPERATURE))
    changes = {"rollout": rollout, "advantage": Grpo(), "policy_loss": PolicyLoss(**loss), "kl": Kl(weight=kl)}
    run = tools.make_run(tmp_path, layout=layout or BatchLayout(max_tokens=10_000), **changes)
    rows = [replace(row, fields=dict(row.fields)) for row in rows]
    scores = {group: list(values) for group, values in enumerate(REWARDS)}
    batch = Batch(rows, len(rows), 0, scores)
    update.credit(run, batch, run.config)
    return run, batch


def test_the_rollouts_are_the_same(theirs):
    assert sorted(row.index for row in rows_of(theirs.inputs)) == list(range(12))
    for row, ids, mask in zip(
        rows_of(theirs.inputs), theirs.inputs["prompt_ids"], theirs.inputs["prompt_mask"], strict=True
    ):
        assert tuple(ids[mask.bool()].tolist()) == row.prompt_ids


def test_advantages(theirs, tmp_path):
    """(reward - mean) / (sample std + 1e-4), 0 where a group's scores are equal."""
    _, batch = ours(tmp_path, rows_of(theirs.inputs))
    found = torch.stack([row.fields["advantage"][0] for row in batch.rows])
    torch.testing.assert_close(found, theirs.inputs["advantages"], atol=1e-6, rtol=0)
    assert theirs.log["frac_reward_zero_std"] == pytest.approx(1 / 3)


@torch.no_grad()
def test_token_log_probabilities_and_entropies(theirs, tmp_path):
    run, batch = ours(tmp_path, rows_of(theirs.inputs))
    i = theirs.inputs
    logps, entropies, _ = theirs.trainer._get_per_token_logps_and_entropies(
        theirs.trainer.model,
        torch.cat([i["prompt_ids"], i["completion_ids"]], 1),
        torch.cat([i["prompt_mask"], i["completion_mask"]], 1),
        i["completion_ids"].shape[1],
        compute_entropy=True,
    )
    [part] = minibatches(run, batch, 1, BatchLayout(pack=True, max_tokens=10_000))
    [micro] = part.micros
    found = update.forward(Policy(model()), micro, run.config)
    place = {row.index: n for n, row in enumerate(rows_of(i))}
    for ours_N, theirs_BT in zip(found, (logps, entropies), strict=True):
        for row, values in zip(micro.rows, ours_N.split(micro.lengths), strict=True):
            torch.testing.assert_close(values, theirs_BT[place[row.index], : len(row.ids)], atol=1e-5, rtol=0)


GSPO = {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.05}
CISPO = {"surrogate": "cispo", "clip_low": 1.0}  # TRL bounds the ratio from above alone


@pytest.mark.parametrize(
    ("loss_type", "aggregate", "variant"),
    [
        ("grpo", "seq-mean-token-mean", {}),
        ("dr_grpo", "seq-mean-token-sum-norm", {}),
        ("dapo", "token-mean", {}),
        ("grpo", "seq-mean-token-mean", GSPO),
        ("cispo", "token-mean", CISPO),
        ("cispo", "token-mean", CISPO | {"ratio": "sequence", "clip_high": 0.05}),
    ],
    ids=["grpo", "dr_grpo", "dapo", "gspo", "cispo", "cispo-sequence"],
)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_loss_and_gradient_off_policy(theirs, tmp_path, loss_type, aggregate, variant, beta):
    """Old log-probabilities that put many ratios outside the clip range, clip-higher, and the plain k3 term (TRL's
    default multiplies it by the ratio: use_bias_correction_kl)."""
    run, batch = ours(tmp_path, rows_of(theirs.inputs), kl=beta, aggregate=aggregate, **{"clip_high": 0.28} | variant)
    loss_cfg = run.config.policy_loss
    module = Policy(model())
    [part] = minibatches(run, batch, 1, BatchLayout(max_tokens=10_000))
    [micro] = part.micros
    with torch.no_grad():
        logp = update.forward(module, micro, run.config)[0]
    noise = torch.Generator().manual_seed(0)
    micro.store("old", logp + 0.4 * torch.randn(logp.shape, generator=noise))
    micro.store("ref", logp + 0.4 * torch.randn(logp.shape, generator=noise))
    out = update.policy_loss(run.config)(module, micro)
    loss = out.total / update.loss_denominator(run.config.policy_loss, part)
    loss.backward()
    assert 0.05 < out.metrics["clip_fraction"] / len(logp) < 0.5

    trainer, inputs = theirs.trainer, dict(theirs.inputs)
    for name, field in (("old_per_token_logps", "old"), ("ref_per_token_logps", "ref")):
        padded = torch.zeros(inputs["completion_ids"].shape)
        padded[inputs["completion_mask"].bool()] = torch.cat([row.fields[field] for row in batch.rows])
        inputs[name] = padded
    trainer.loss_type, trainer.beta, trainer.epsilon_high = loss_type, beta, loss_cfg.clip_high
    trainer.epsilon_low, trainer.importance_sampling_level = loss_cfg.clip_low, loss_cfg.ratio
    if loss_type == "cispo":
        trainer.epsilon_high += 1  # of the ratio itself
    trainer.model.zero_grad()
    expected = trainer._compute_loss(trainer.model, inputs)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    _same_gradients(module.lm, trainer.model)


def _same_gradients(mine, other):
    largest = max(p.grad.abs().max() for p in other.parameters()).item()
    assert largest > 1e-3
    for (name, p), q in zip(mine.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5 * largest, rtol=1e-4, msg=name)


@pytest.mark.rounding
@pytest.mark.parametrize("layout", [BatchLayout(max_tokens=10_000), BatchLayout(pack=True, max_tokens=64)])
def test_weights_after_one_step(theirs, tmp_path, layout):
    """Ours cuts the batch into micro-batches as it likes; TRL takes it at once."""
    run, batch = ours(tmp_path, ROWS, layout=layout)
    lm = model()
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    optim = AdamW(lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    actor = run.trainable("actor", Policy(lm), TrainableConfig(optim=optim, clip=1.0), total_updates=1)
    [part] = minibatches(run, batch, 1, layout)
    metrics = actor.update(
        part.micros, update.policy_loss(run.config), update.loss_denominator(run.config.policy_loss, part)
    )
    assert metrics["actor/loss"] == pytest.approx(theirs.log["loss"], abs=1e-5)  # TRL logs it rounded
    assert metrics["actor/grad_norm"] == pytest.approx(float(theirs.log["grad_norm"]), rel=1e-3)
    moved = 0
    for name, value in actor.named_weights():
        torch.testing.assert_close(value, theirs.after[name], atol=1e-5, rtol=0, msg=name)
        moved += int((value - before[name]).abs().max() > 0.5 * LR)
    assert moved > 10
