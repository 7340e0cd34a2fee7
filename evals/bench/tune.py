"""`stepstack bench tune`: SFT, and DPO on text and on pictures, against TRL in one run on one machine.

Contestants share model, rows, batch, steps and the optimizer's numbers. One thread, process CPU time of the training
alone: what is tokenized before is not counted for either, what is read while training is, and so are the reference's
log-probabilities. Rows differ in length as chats do. TRL has its defaults. Ours keeps what the reference said, reads
the prompt of a pair once, and pads rows of like length together: packing does not pay without flash attention.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from PIL import Image, ImageDraw
from rich.table import Table
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from evals.bench._trl import QUIET
from stepstack.batching.config import BatchLayout
from stepstack.batching.pairs import Pair, PairMicroBatch, pair_minibatch
from stepstack.batching.reference import cached
from stepstack.batching.rows import Row
from stepstack.batching.stream import RowStream
from stepstack.config import RunConfig, Save
from stepstack.core.config import AdamW, TrainableConfig
from stepstack.core.run import Run
from stepstack.loops import preference, supervised
from stepstack.models.lm import tiny
from stepstack.models.lm.policy import Policy
from stepstack.models.vision.policy import ImagePatcher, VisionPolicy
from stepstack.report.provenance import describe, provenance
from stepstack.terminal import console
from stepstack.tuning.config import PreferenceLoss

BATCH, LR, MAX_TOKENS = 16, 1e-4, 1024
START, END, IMAGE = tiny.VISION[:3]
WORDS = (
    *("the", "figure", "shows", "that", "our", "method", "needs", "fewer", "steps", "than"),
    *("what", "was", "known", "and", "a", "loss", "is", "lower", "before"),
)
GOALS = {"SFT, text": 1.3, "DPO, text": 1.5, "DPO, two pictures": 2.0}


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn picture of ``bars``."""

    bars: tuple[int, ...]

    def image(self) -> Image.Image:
        canvas = Image.new("RGB", (112, 84), "white")
        for place, height in enumerate(self.bars):
            ImageDraw.Draw(canvas).rectangle([place * 12, 84 - height, place * 12 + 8, 84], fill="blue")
        return canvas


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, a better and a worse answer, and pictures of the prompt."""

    prompt: str
    chosen: str
    rejected: str
    charts: tuple[Chart, ...] = ()


def measure(rounds: int = 5, steps: int = 8) -> dict[str, Any]:
    """Speeds of ``rounds`` trainings of ``steps`` updates each, after one that warms up."""
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"  # TRL's telemetry would call out
    rows: list[dict[str, Any]] = []
    contests: dict[str, tuple[Callable[..., float], Callable[..., float], int]] = {
        "SFT, text": (our_sft, their_sft, 0),
        "DPO, text": (our_dpo, their_dpo, 0),
        "DPO, two pictures": (our_dpo, their_dpo, 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (ours, theirs, charts) in contests.items():
            for turn in range(rounds + 1):
                data = examples(BATCH * steps, charts, seed=turn)
                speeds = {"ours": ours(data, Path(folder) / f"{name}-{turn}"), "trl": theirs(data, folder)}
                if turn:
                    rows.append({"contest": name, "seed": turn, **speeds})
    facts = {"batch": BATCH, "steps": steps, "parameters": sum(p.numel() for p in model(0).parameters())}
    return {"bench": "tune", **facts, "rows": rows, "provenance": provenance()}


def examples(count: int, charts: int, seed: int) -> list[Example]:
    """Prompts of 10 to 120 words and answers of 5 to 80."""
    rng = random.Random(seed)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=int(least * (most / least) ** rng.random())))

    def chart() -> Chart:
        return Chart(tuple(rng.randint(5, 80) for _ in range(8)))

    return [
        Example(text(10, 120), text(5, 80), text(5, 80), tuple(chart() for _ in range(charts))) for _ in range(count)
    ]


def tokenizer() -> Any:
    """A piece a word."""
    made = tiny.tokenizer(pieces=[f" {word}" for word in dict.fromkeys(WORDS)], special=(*tiny.CHAT, *tiny.VISION))
    made.eos_token = "<|im_end|>"
    return made


def model(charts: int) -> PreTrainedModel:
    """Small, but wide enough that matrices are what takes the time."""
    shape = {"hidden": 192, "layers": 4, "intermediate": 512, "seed": 0, "max_length": 4096}
    if charts:
        return tiny.qwen2_5_vl(tokenizer(), tower=128, depth=4, **shape)
    return tiny.qwen2(len(tokenizer()), **shape)


# -- ours -----------------------------------------------------------------------------------------------------------


def prepared(data: list[Example], folder: Path) -> tuple[Run, Any, Callable[[Example], tuple[Row, Row]], BatchLayout]:
    """(run, policy, how an example becomes rows, layout)."""
    words, charts = tokenizer(), len(data[0].charts)
    lm = model(charts)
    patcher = ImagePatcher(tiny.image_processor())
    image = words.get_vocab()[IMAGE]
    policy = VisionPolicy(lm, patcher, []) if charts else Policy(lm)
    run = Run(RunConfig(recipe="none", name=folder.name, dir=str(folder.parent), trackers=(), save=Save(every=0)))
    cfg = TrainableConfig(optim=AdamW(lr=LR, betas=(0.9, 0.999)))
    trainable = run.trainable("policy", policy, cfg, len(data) // BATCH)

    def rows(example: Example) -> tuple[Row, Row]:
        ids: list[int] = words(prompt_of(example), add_special_tokens=False)["input_ids"]
        shown = iter(example.charts)
        wide = [[t] * patcher.tokens(next(shown).image().size) if t == image else [t] for t in ids]
        prompt = tuple(token for part in wide for token in part)
        answers = (words(f" {a}{words.eos_token}")["input_ids"] for a in (example.chosen, example.rejected))
        chosen, rejected = (Row(side, prompt, tuple(a), pictures=example.charts) for side, a in enumerate(answers))
        return chosen, rejected

    return run, trainable, rows, BatchLayout(max_tokens=MAX_TOKENS, share_prompts=True)


def our_sft(data: list[Example], folder: Path) -> float:
    """Tokens/s, prompts counted."""
    run, policy, as_rows, layout = prepared(data, folder)
    rows = [as_rows(example)[0] for example in data]
    stream = RowStream(rows, BATCH, seed=0)
    started = time.process_time()
    supervised.train(run, policy=policy, rows=stream.take, steps=len(data) // BATCH, layout=layout)
    return sum(map(len, rows)) / (time.process_time() - started)


def our_dpo(data: list[Example], folder: Path) -> float:
    """Pairs/s."""
    run, policy, as_rows, layout = prepared(data, folder)
    pairs = [Pair(i, *as_rows(example)) for i, example in enumerate(data)]
    started = time.process_time()
    stream = RowStream(cached(run, policy, pairs, layout, run.dir / "reference.json"), BATCH, seed=0)
    preference.train(
        run,
        policy=policy,
        minibatch=lambda step: pair_minibatch(run, stream.take(step), layout),
        loss=lambda batch: preference.token_loss(PreferenceLoss(), batch, PairMicroBatch.reference),
        steps=len(data) // BATCH,
    )
    return len(pairs) / (time.process_time() - started)


# -- TRL's ----------------------------------------------------------------------------------------------------------


def prompt_of(example: Example) -> str:
    """The text of a prompt, a picture being one token that each contestant widens by itself."""
    return "".join(f"{START}{IMAGE}{END}" for _ in example.charts) + f" {example.prompt}"


def settings(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "max_length": None,
        **QUIET,
    }


def their_sft(data: list[Example], folder: str) -> float:
    """Tokens/s of SFTTrainer, prompts counted."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": prompt_of(e), "completion": f" {e.chosen}"} for e in data]
    trainer = SFTTrainer(
        model=model(0),
        args=SFTConfig(**settings(folder)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    dataset: Any = trainer.train_dataset
    tokens = sum(len(row["input_ids"]) for row in dataset)
    started = time.process_time()
    trainer.train()
    return tokens / (time.process_time() - started)


def their_dpo(data: list[Example], folder: str) -> float:
    """Pairs/s of DPOTrainer."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    charts = len(data[0].charts)
    rows: list[dict[str, Any]] = [
        {"prompt": prompt_of(e), "chosen": f" {e.chosen}", "rejected": f" {e.rejected}"} for e in data
    ]
    for row, example in zip(rows, data, strict=True):
        if charts:
            row["images"] = [chart.image() for chart in example.charts]
    trainer = DPOTrainer(
        model=model(charts),
        ref_model=model(charts),
        args=DPOConfig(**settings(folder)),
        train_dataset=Dataset.from_list(rows),
        processing_class=VisionProcessor(tiny.image_processor(), tokenizer()) if charts else tokenizer(),
    )
    started = time.process_time()
    trainer.train()
    return len(data) / (time.process_time() - started)


class VisionProcessor(ProcessorMixin):
    """Qwen2.5-VL's processor without its video part, which asks for torchvision."""

    attributes = ("image_processor", "tokenizer")
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor: Any = None, tokenizer: Any = None):
        super().__init__(image_processor, tokenizer)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Texts with as many image tokens as each picture has, and the patches of all pictures."""
        texts, out = list(text), {}
        if images is not None:
            flat = [picture for row in images for picture in row]
            out = dict(self.image_processor(images=flat, return_tensors="pt"))
            counts = iter((out["image_grid_thw"].prod(1) // self.image_processor.merge_size**2).tolist())
            texts = [self._widened(one, counts) for one in texts]
        encoded = self.tokenizer(texts, **kwargs)
        encoded.update(out)
        if images is not None:
            encoded["mm_token_type_ids"] = (encoded["input_ids"] == self.tokenizer.get_vocab()[IMAGE]).int()
        return encoded

    @staticmethod
    def _widened(text: str, counts: Any) -> str:
        first, *rest = text.split(IMAGE)
        return first + "".join(IMAGE * next(counts) + part for part in rest)


def show(result: dict[str, Any]) -> None:
    out = console()
    table = Table(title="Tuning against TRL, one CPU thread: tokens/s of SFT, pairs/s of DPO")
    for column in ("", "stepstack", "TRL", "ratio", "stderr", "goal"):
        table.add_column(column, justify="right" if column else "left")
    for name, goal in GOALS.items():
        rows = [row for row in result["rows"] if row["contest"] == name]
        ratios = [row["ours"] / row["trl"] for row in rows]
        error = stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
        speeds = [fmean(row[who] for row in rows) for who in ("ours", "trl")]
        table.add_row(name, *(f"{x:.1f}" for x in speeds), f"{fmean(ratios):.2f}x", f"{error:.2f}", f"{goal}x")
    out.print(table)
    out.print(describe(result["provenance"]))
