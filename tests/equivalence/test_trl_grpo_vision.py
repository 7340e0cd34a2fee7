"""Our GRPO on a vision-language model against TRL's: the same rollouts, one and two pictures, loss and gradients."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from PIL import Image, ImageDraw

from stepstack.batching.config import BatchLayout
from stepstack.batching.minibatch import minibatches
from stepstack.batching.rows import Batch, Row
from stepstack.generation.types import Sampling
from stepstack.models.lm import tiny
from stepstack.models.vision.policy import ImagePatcher, VisionPolicy
from stepstack.rl import update
from stepstack.rl.config import Grpo, Kl, PolicyLoss, RolloutConfig
from tests import tools

TEMPERATURE, LENGTH, N = 0.8, 12, 4
TOKENIZER = tiny.tokenizer(special=(*tiny.CHAT, *tiny.VISION))
START, END, IMAGE = (TOKENIZER.get_vocab()[name] for name in tiny.VISION[:3])
REWARDS = [[1.0, 0.0, 0.2, 0.7], [0.0, 1.0, 1.0, 0.0]]


@dataclass(frozen=True)
class Dot:
    left: int
    size: tuple[int, int] = (56, 56)

    def image(self) -> Image.Image:
        made = Image.new("RGB", self.size, "white")
        ImageDraw.Draw(made).ellipse([self.left, 10, self.left + 18, 28], fill="blue")
        return made


READER = ImagePatcher(tiny.image_processor())
PICTURES = [(Dot(4),), (Dot(20), Dot(30, (84, 56)))]


def rollouts() -> list[Row]:
    rng, made = random.Random(0), []
    for group, pictures in enumerate(PICTURES):
        shown = [t for p in pictures for t in (START, *[IMAGE] * READER.tokens(p.size), END)]
        prompt = (*shown, *TOKENIZER("a dot" + "?" * group).input_ids)
        for sample in range(N):
            ids = tuple(rng.randrange(2, 258) for _ in range((1, LENGTH, 7, 4)[(group + sample) % 4]))
            fields = {"sampler": torch.zeros(len(ids))}
            made.append(Row(group * N + sample, prompt, ids, REWARDS[group][sample], group, sample, fields, pictures))
    return made


ROWS = rollouts()


def model():
    return tools.perturbed(tiny.qwen2_5_vl(TOKENIZER, hidden=48, layers=2, intermediate=64, tower=32, seed=0), 0.05)


def padded(sequences, left: bool):
    """[B, T] ids and mask."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, place], mask[row, place] = torch.tensor(sequence), 1
    return ids, mask


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        report_to="none",
        use_cpu=True,
        bf16=False,
        beta=0.0,
        per_device_train_batch_size=len(ROWS),
        num_generations=N,
        max_completion_length=LENGTH,
        max_steps=1,
        gradient_checkpointing=False,
        disable_tqdm=True,
        temperature=TEMPERATURE,
        loss_type="grpo",
        epsilon=0.2,
        use_bias_correction_kl=False,
    )
    return GRPOTrainer(
        model=model(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 8}),
        processing_class=TOKENIZER,
    )


def their_inputs(batch: Batch) -> dict:
    prompt_ids, prompt_mask = padded([row.prompt_ids for row in batch.rows], left=True)
    completion_ids, completion_mask = padded([row.ids for row in batch.rows], left=False)
    patches = [READER.patches(p) for row in batch.rows for p in row.pictures]
    ids = torch.cat([prompt_ids, completion_ids], 1)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.stack([row.fields["advantage"][0] for row in batch.rows]),
        "pixel_values": torch.cat([p.pixels for p in patches]),
        "image_grid_thw": torch.tensor([p.grid for p in patches]),
        "num_images": [len(row.pictures) for row in batch.rows],
        "mm_token_type_ids": (ids == IMAGE).int(),
        "num_items_in_batch": completion_mask.sum(),
    }


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_and_gradients(trainer, tmp_path, beta):
    """Off policy, so that the clip counts; the gradient of the vision tower too."""
    rollout = RolloutConfig(prompts=2, sampling=Sampling(n=N, max_tokens=LENGTH, temperature=TEMPERATURE))
    loss = PolicyLoss(aggregate="seq-mean-token-mean")
    changes = {"rollout": rollout, "advantage": Grpo(), "policy_loss": loss, "kl": Kl(weight=beta)}
    run = tools.make_run(tmp_path, layout=BatchLayout(max_tokens=10_000), **changes)
    batch = Batch(ROWS, len(ROWS), 0, dict(enumerate(REWARDS)))
    update.credit(run, batch, run.config)
    module = VisionPolicy(model().train(), READER, banned=())
    [part] = minibatches(run, batch, 1, BatchLayout(max_tokens=10_000))
    [micro] = part.micros
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logp = update.forward(module, micro, run.config)[0]
    for name in ("old", "ref") if beta else ("old",):
        micro.store(name, logp + 0.4 * torch.randn(logp.shape, generator=noise))
    out = update.policy_loss(run.config)(module, micro)
    mine = out.total / update.loss_denominator(loss, part)
    mine.backward()
    assert 0.1 < out.metrics["clip_fraction"] / len(logp) < 0.6

    inputs = their_inputs(batch)
    for name, field in (("old_per_token_logps", "old"), ("ref_per_token_logps", "ref")):
        if field in batch.rows[0].fields and (field == "old" or beta):
            values = torch.zeros(inputs["completion_ids"].shape)
            values[inputs["completion_mask"].bool()] = torch.cat([row.fields[field] for row in batch.rows])
            inputs[name] = values
    trainer.model.load_state_dict(model().state_dict())
    trainer.model.eval().zero_grad()  # in its words: no gradient accumulation; the model has no dropout
    trainer.beta = beta
    expected = trainer._compute_loss(trainer.model, inputs)
    expected.backward()
    assert mine.item() == pytest.approx(expected.item(), abs=1e-6)
    theirs = dict(trainer.model.named_parameters())
    largest = max(p.grad.abs().max() for p in theirs.values()).item()
    assert largest > 1e-3
    for name, p in module.lm.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, atol=1e-5 * largest, rtol=1e-4, msg=name)
    assert module.lm.model.visual.patch_embed.proj.weight.grad.abs().max() > 0
