"""Our SFT and preference losses against TRL's own: the same rows, text and two pictures, loss and gradients."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image, ImageDraw

from stepstack.batching.config import BatchLayout
from stepstack.batching.minibatch import minibatches
from stepstack.batching.pairs import Pair, pair_minibatch
from stepstack.batching.rows import Batch, Row
from stepstack.loops import preference, supervised
from stepstack.models.lm import tiny
from stepstack.models.lm.policy import Policy
from stepstack.models.vision.policy import ImagePatcher, VisionPolicy
from stepstack.tuning.config import PreferenceLoss
from tests import tools

TOKENIZER = tiny.tokenizer(special=(*tiny.CHAT, *tiny.VISION))
START, END, IMAGE = (TOKENIZER.get_vocab()[name] for name in tiny.VISION[:3])
PATCHER = ImagePatcher(tiny.image_processor())
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BOTH = pytest.mark.parametrize("pictures", [False, True], ids=["text", "pictures"])

LAYOUTS = (BatchLayout(max_tokens=10_000), BatchLayout(max_tokens=80), BatchLayout(pack=True))
SHARED = (BatchLayout(share_prompts=True), BatchLayout(share_prompts=True, pack=True))
LOSSES = {
    "sigmoid": PreferenceLoss(),
    "ipo": PreferenceLoss(type="ipo", beta=0.3),
    "hinge": PreferenceLoss(type="hinge", beta=0.05),
    "robust": PreferenceLoss(type="robust", label_smoothing=0.2),
    "apo_zero": PreferenceLoss(type="apo_zero"),
    "apo_down": PreferenceLoss(type="apo_down", beta=0.2),
    "sft": PreferenceLoss(sft=0.7),
}


@dataclass(frozen=True)
class Dot:
    left: int
    size: tuple[int, int] = (56, 56)

    def image(self) -> Image.Image:
        canvas = Image.new("RGB", self.size, "white")
        ImageDraw.Draw(canvas).ellipse([self.left, 10, self.left + 18, 28], fill="blue")
        return canvas


def pairs(pictures: bool) -> list[Pair]:
    """Prompts and answers of differing lengths; two pictures a row, or none."""
    rng, made = random.Random(0), []
    for index, (before, chosen, rejected) in enumerate([(3, 5, 2), (7, 1, 6), (2, 4, 4), (5, 8, 3)]):
        shown = (Dot(4 + index), Dot(20, (84, 56))) if pictures else ()
        image = [t for p in shown for t in (START, *[IMAGE] * PATCHER.tokens(p.size), END)]
        prompt = (*image, *(rng.randrange(2, 258) for _ in range(before)))
        sides = [tuple(rng.randrange(2, 258) for _ in range(count)) for count in (chosen, rejected)]
        rows = [Row(side, prompt, ids, pictures=shown) for side, ids in enumerate(sides)]
        made.append(Pair(index, *rows))
    return made


def model(pictures: bool, seed: int = 0):
    if pictures:
        lm = tiny.qwen2_5_vl(TOKENIZER, hidden=48, layers=2, intermediate=64, tower=32, seed=0)
    else:
        lm = tiny.qwen2(len(TOKENIZER), hidden=48, layers=2, intermediate=64, seed=0)
    return tools.perturbed(lm, 0.05, seed)


def policy(lm, pictures: bool) -> Policy:
    return VisionPolicy(lm, PATCHER, []) if pictures else Policy(lm)


def padded(rows: list[Row]) -> dict[str, torch.Tensor]:
    """TRL's inputs of rows: right-padded ids, their mask, and that of what is learned."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, learned = torch.zeros_like(ids), torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor((*row.prompt_ids, *row.ids))
        mask[place, : len(row)] = 1
        learned[place, len(row.prompt_ids) : len(row)] = torch.tensor(
            [int(w > 0) for w in row.weights or [1] * len(row.ids)]
        )
    out = {"input_ids": ids, "attention_mask": mask, "completion_mask": learned}
    if rows[0].pictures:
        patches = [PATCHER.patches(p) for row in rows for p in row.pictures]
        out["pixel_values"] = torch.cat([p.pixels for p in patches])
        out["image_grid_thw"] = torch.tensor([p.grid for p in patches])
        out["mm_token_type_ids"] = (ids == IMAGE).int()
    return out


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def agree(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert max(value.abs().max() for value in theirs.values()) > 1e-3
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, **CLOSE, msg=name)


@pytest.fixture(scope="module", params=[False, True], ids=["text", "pictures"])
def dpo(request, tmp_path_factory):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        max_length=None,
    )
    row = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
    trainer = DPOTrainer(
        model=model(request.param),
        ref_model=model(request.param, seed=1),
        args=config,
        train_dataset=Dataset.from_dict(row),
        processing_class=TOKENIZER,
    )
    return trainer, request.param


@pytest.mark.parametrize("name", LOSSES)
def test_preference_losses_and_gradients(dpo, tmp_path, name):
    trainer, pictures = dpo
    cfg, rows = LOSSES[name], pairs(pictures)
    trainer.beta, trainer.label_smoothing = cfg.beta, cfg.label_smoothing
    trainer.loss_types, trainer.loss_weights = [cfg.type], [1.0]
    if cfg.sft:
        trainer.loss_types, trainer.loss_weights = [cfg.type, "sft"], [1.0, cfg.sft]
    trainer.model.zero_grad()
    want = trainer._compute_loss(trainer.model, padded([*(p.chosen for p in rows), *(p.rejected for p in rows)]), False)
    want.backward()

    lm, reference = model(pictures), policy(model(pictures, seed=1), pictures)
    ours = policy(lm, pictures)

    def before(micro):
        with torch.no_grad():
            return micro.scores(reference(**micro.tokens.inputs())[0])

    run = tools.make_run(tmp_path)
    for layout in [
        BatchLayout(max_tokens=10_000),
        BatchLayout(max_tokens=80),
        *([] if pictures else [BatchLayout(pack=True)]),
    ]:
        lm.zero_grad()
        batch = pair_minibatch(run, rows, layout)
        loss = preference.token_loss(cfg, batch, before)
        total = sum(loss(ours, micro).total for micro in batch.micros) / batch.pairs
        torch.testing.assert_close(total, want, **CLOSE)
        total.backward()
        agree(gradients(lm), gradients(trainer.model))


@BOTH
def test_sft_loss_and_gradients_with_weights_a_token(tmp_path, pictures):
    """Only some tokens of a row are learned, as in a conversation of several turns."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rng = random.Random(1)
    rows = [row for pair in pairs(pictures) for row in (pair.chosen, pair.rejected)]
    rows = [
        replace(row, index=i, weights=(1.0, *(float(rng.random() < 0.6) for _ in row.ids[1:])))
        for i, row in enumerate(rows)
    ]
    config = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        max_length=None,
    )
    trainer = SFTTrainer(
        model=model(pictures),
        args=config,
        train_dataset=Dataset.from_dict({"text": ["ab"]}),
        processing_class=TOKENIZER,
    )
    inputs = padded(rows)
    learned = inputs.pop("completion_mask")
    inputs["labels"] = inputs["input_ids"].masked_fill(learned == 0, -100)
    want = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=learned.sum())
    want.backward()

    run, lm = tools.make_run(tmp_path), model(pictures)
    ours = policy(lm, pictures)
    for layout in [
        BatchLayout(max_tokens=10_000),
        BatchLayout(max_tokens=60),
        *([] if pictures else [BatchLayout(pack=True)]),
    ]:
        lm.zero_grad()
        [part] = minibatches(run, Batch(rows, len(rows), 0), 1, layout)
        assert part.tokens == int(learned.sum())
        total = sum(supervised.likelihood(ours, micro).total for micro in part.micros) / part.tokens
        torch.testing.assert_close(total, want, **CLOSE)
        total.backward()
        agree(gradients(lm), gradients(trainer.model))
