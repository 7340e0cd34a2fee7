"""The tiny base model: a Qwen2.5-VL of 0.6M parameters that a brief SFT teaches to see, from careless annotations.

Boxes are a few pixels off, objects are forgotten or counted twice, labels and letters are mistaken: as weak labels are.
What RL then has is a checkable reward on the true scene.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from transformers import PreTrainedModel, Qwen2Tokenizer

from data.pictures import Record
from data.scenes import Colour, Shape, Words
from stepstack.config import Save, Strict
from stepstack.core.optim import Muon, Optim, Schedule, TrainableConfig
from stepstack.core.run import Run, stage
from stepstack.loops import supervised
from stepstack.models import tiny
from stepstack.models.vision import Reader, VisionPolicy
from stepstack.rl.batch import Row
from stepstack.scoring.answers import ANSWER, ANSWER_END, THINK, THINK_END, Found, write_tokens
from stepstack.scoring.spatial import centre

if TYPE_CHECKING:
    from recipes.perception.models import Kit
    from recipes.perception.recipe import Config

PATCH = 14
WORDS = [*get_args(Colour), *get_args(Shape)]
NAMES = [*WORDS, *(f"{colour} {shape}" for colour in get_args(Colour) for shape in get_args(Shape))]
LETTERS = Words().characters
SPECIAL = (*tiny.CHAT, *tiny.VISION, *tiny.BOXES)
TAGS = (THINK, THINK_END, ANSWER, ANSWER_END)


@dataclass(frozen=True, kw_only=True, slots=True)
class Careless(Strict):
    """How demonstrations err: edges off by up to ``jitter`` pixels; chance of an object being forgotten, of being named
    twice, of a wrong label; of a letter being mistaken or left out."""

    jitter: int = 0
    forgotten: float = 0.0
    twice: float = 0.0
    label: float = 0.0
    letter: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyVl(Strict):
    """The model's shape, and its SFT on scenes of the training split."""

    type: Literal["tiny"] = "tiny"
    hidden: int = 96
    layers: int = 3
    intermediate: int = 256
    tower: int = 64
    depth: int = 2
    theta: float = 10.0
    steps: int = 800
    batch: int = 32
    optim: Optim = Muon(lr=0.02, adamw_lr=2e-3, schedule=Schedule(kind="linear", warmup=10))
    careless: Careless = Careless()

    def model_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Scenes are not resized."""
        return size


def tokenizer(thinking: bool = False) -> Qwen2Tokenizer:
    """One token for a number, for what an object is called, for what stands between coordinates, and for each tag of
    a model that thinks."""
    numbers = [str(number) for number in range(10, 128)]
    return tiny.tokenizer(pieces=[*numbers, "),(", *NAMES, *(TAGS if thinking else ())], special=SPECIAL)


def make(run: Run[Config], cfg: TinyVl, out: Path) -> None:
    """The base model of a run, made in ``out`` by a stage of the run, or found there finished."""
    if not out.is_dir():
        _train(stage(run, "base", eval_every=0, save=Save(every=200, keep=1)), cfg, out)


def untrained(cfg: TinyVl, seed: int, thinking: bool = False) -> tuple[PreTrainedModel, Kit]:
    """The tiny model as it is born, with its tokenizer and image processor."""
    from recipes.perception.models import Kit

    words = tokenizer(thinking)
    shape = {name: getattr(cfg, name) for name in ("hidden", "layers", "intermediate", "tower", "depth", "theta")}
    lm = tiny.qwen2_5_vl(words, patch=PATCH, seed=seed, **shape)
    return lm, Kit(words, Reader(tiny.image_processor(PATCH)))


def _train(run: Run[Config], cfg: TinyVl, out: Path) -> None:
    from recipes.perception.data import load_prompts

    thinking = run.config.prompt.thinking
    lm, kit = untrained(cfg, run.config.seed, thinking)
    policy = run.trainable(
        "policy", VisionPolicy(lm, kit.reader, kit.banned), TrainableConfig(optim=cfg.optim), total_updates=cfg.steps
    )
    prompts = load_prompts(run.config, kit).train
    end = kit.tokenizer.get_vocab()["<|im_end|>"]

    def rows(step: int) -> list[Row]:
        rng = random.Random(f"{run.config.seed}-{step}")
        made = []
        for place, prompt in enumerate(rng.choices(prompts, k=cfg.batch)):
            said = demonstration(prompt.problem.meta["record"], cfg.careless, rng, thinking)
            ids = kit.tokenizer(said, add_special_tokens=False)["input_ids"]
            made.append(Row(place, prompt.ids, (*ids, end), pictures=prompt.pictures))
        return made

    supervised.train(run, policy=policy, rows=rows, steps=cfg.steps, layout=run.config.layout)
    run.export("policy", out, kit)
    run.finish()


def demonstration(record: Record, careless: Careless, rng: random.Random, thinking: bool = False) -> str:
    """An answer to a scene's question, with its carelessness; objects in a random order. Who thinks says first where
    each object is (which letter comes after which), as carelessly."""
    if record.task == "ocr":
        said = misread(record.text, careless.letter, rng)
        return thought(" ".join(said), said) if thinking else said
    found, labels = [], [target.label for target in record.targets]  # one mistakes an object for another one there
    for target in record.targets:
        if rng.random() < careless.forgotten and record.task != "grounding":
            continue
        assert target.box is not None
        label = rng.choice(labels) if rng.random() < careless.label else target.label
        times = 2 if rng.random() < careless.twice and record.task != "grounding" else 1
        found += [Found(_shaken(target.box, careless.jitter, record.size, rng), label) for _ in range(times)]
    rng.shuffle(found)
    if not thinking:
        return write_tokens(found)
    middles = [centre(item.box) for item in found]
    where = [f"{item.label} {x:.0f} {y:.0f}" for item, (x, y) in zip(found, middles, strict=True)]
    return thought(";".join(where), write_tokens(found))


def thought(reasoning: str, answer: str) -> str:
    return f"{THINK}{reasoning}{THINK_END}{ANSWER}{answer}{ANSWER_END}"


def misread(text: str, chance: float, rng: random.Random) -> str:
    """Each letter may be left out or taken for another one."""
    out = []
    for letter in text:
        if letter.strip() and rng.random() < chance:
            out.append(rng.choice(["", rng.choice(LETTERS)]))
        else:
            out.append(letter)
    return "".join(out)


def _shaken(
    box: Sequence[float], jitter: int, size: tuple[int, int], rng: random.Random
) -> tuple[float, float, float, float]:
    """Each edge moved by up to ``jitter`` pixels, still a box within the picture."""
    width, height = size
    x1, y1, x2, y2 = (edge + rng.randint(-jitter, jitter) for edge in box)
    x1, y1 = max(0, min(x1, width - 2)), max(0, min(y1, height - 2))
    return x1, y1, min(width, max(x2, x1 + 1)), min(height, max(y2, y1 + 1))
