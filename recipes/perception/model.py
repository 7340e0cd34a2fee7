"""The vision-language model of a run: a published Qwen2-VL or Qwen2.5-VL, or a tiny one made on the spot.

The tiny base model is a Qwen2.5-VL of 0.6M parameters that a brief SFT teaches to see, from noisy annotations: boxes
a few pixels off, objects forgotten or counted twice, labels and letters mistaken, as weak labels are. What RL then has
is a checkable reward on the true scene.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from transformers import PreTrainedModel, Qwen2Tokenizer

from data.drawn.scenes import Colour, Shape, Words
from data.media.images import Record
from recipes.perception.config import Config, LabelNoise, TinyVl
from recipes.perception.data import load_prompts
from recipes.perception.prompt import encode
from stepstack.batching.pipelined import trainable_of
from stepstack.batching.rows import Row
from stepstack.core import hf
from stepstack.core.config import TrainableConfig
from stepstack.core.run import Run, stage
from stepstack.generation.build import build_generator
from stepstack.generation.prompts import Pictured
from stepstack.generation.types import EngineError, Generator, Prompt
from stepstack.harness.config import TaskData
from stepstack.harness.engine import Question
from stepstack.harness.engines.generator import GeneratorEngine, open_generator
from stepstack.loops import supervised
from stepstack.models.lm import tiny
from stepstack.models.vision import pretrained
from stepstack.models.vision.config import PretrainedVl
from stepstack.models.vision.policy import ImagePatcher, VisionPolicy
from stepstack.models.vision.pretrained import load_processor, tiny_at
from stepstack.models.vision.processor import Processor
from stepstack.scoring.vision.answers import ANSWER, ANSWER_END, THINK, THINK_END, LabelledBox, write_tokens
from stepstack.scoring.vision.spatial import centre


def load_model(run: Run[Config]) -> tuple[PreTrainedModel, Processor, str]:
    """(model, processor, folder or hub name that an engine of its own can load the same model from)."""
    cfg = run.config
    match cfg.model:
        case TinyVl() as kind:
            folder = run.dir / "base" / "model"
            if isinstance(cfg.data, TaskData):
                run.save_once(folder, partial(untrained, kind, cfg.seed, cfg.prompt.thinking))
            else:
                build_base(run, kind, folder)
            place = tiny_at(folder, PATCH)
        case PretrainedVl() as kind:
            place = kind
    lm = run.load(lambda: pretrained.load(place), lambda: pretrained.skeleton(place))
    return lm, load_processor(place), place.path


def skeleton(cfg: Config) -> PreTrainedModel:
    """The model of a config, whose weights take no memory."""
    match cfg.model:
        case TinyVl() as own:
            return hf.without_memory(lambda: untrained(own, cfg.seed, cfg.prompt.thinking)[0])
        case PretrainedVl() as kind:
            return hf.without_memory(lambda: pretrained.skeleton(kind))


def prompt_builder(cfg: Config, processor: Processor) -> Callable[[Question], Prompt]:
    """How the harness puts a question, as training does. EngineError for one without pictures."""

    def build(question: Question) -> Prompt:
        if not isinstance(question.request, Pictured):
            raise EngineError(
                f"question {question.problem.index} has no pictures, which this model answers about: leave the task out"
            )
        return encode(question.problem, question.request, processor, cfg.prompt)

    return build


def open_engine(cfg: Config, folder: Path, device: torch.device) -> GeneratorEngine:
    """A model folder, answering on ``device`` by the config's generator."""
    place = cfg.model.moved(folder) if isinstance(cfg.model, PretrainedVl) else tiny_at(folder, PATCH)
    processor = load_processor(place)
    return open_generator(
        cfg.rollout.generator,
        place,
        device,
        processor.tokenizer,
        auto=pretrained.AUTO,
        processor=processor,
        prompt=prompt_builder(cfg, processor),
    )


def open_sampler(cfg: Config, folder: Path, device: torch.device) -> tuple[Generator, list[Prompt]]:
    """The sampler of a worker process, whose weights come from the trainer, and the training prompts. ``folder`` holds
    the files of the model but its weights; it is empty where the config names a model of a hub."""
    place = tiny_at(folder, PATCH)
    if isinstance(cfg.model, PretrainedVl):
        place = cfg.model.moved(folder) if any(folder.iterdir()) else cfg.model
    processor = load_processor(place)
    lm = hf.without_memory(lambda: pretrained.skeleton(place))
    generator = build_generator(cfg.rollout.generator, lm, processor.tokenizer, place.path, device, processor)
    return generator, load_prompts(cfg, processor).train


PATCH = 14


WORDS = [*get_args(Colour), *get_args(Shape)]


NAMES = [*WORDS, *(f"{colour} {shape}" for colour in get_args(Colour) for shape in get_args(Shape))]


LETTERS = Words().characters


SPECIAL = (*tiny.CHAT, *tiny.VISION, *tiny.BOXES)


TAGS = (THINK, THINK_END, ANSWER, ANSWER_END)


def tokenizer(thinking: bool = False) -> Qwen2Tokenizer:
    """One token for a number, for what an object is called, for what stands between coordinates, and for each tag of
    a model that thinks."""
    numbers = [str(number) for number in range(10, 128)]
    return tiny.tokenizer(pieces=[*numbers, "),(", *NAMES, *(TAGS if thinking else ())], special=SPECIAL)


def build_base(run: Run[Config], cfg: TinyVl, out: Path) -> None:
    """The base model of a run, made in ``out`` by a stage of the run, or found there finished."""
    if not out.is_dir():
        _train(stage(run, "base", eval_every=0), cfg, out)


def untrained(cfg: TinyVl, seed: int, thinking: bool = False) -> tuple[PreTrainedModel, Processor]:
    """The tiny model as it is born, with its tokenizer and image processor."""
    words = tokenizer(thinking)
    shape = {name: getattr(cfg, name) for name in ("hidden", "layers", "intermediate", "tower", "depth", "theta")}
    lm = tiny.qwen2_5_vl(words, patch=PATCH, seed=seed, **shape)
    return lm, Processor(words, ImagePatcher(tiny.image_processor(PATCH)))


def _train(run: Run[Config], cfg: TinyVl, out: Path) -> None:
    from recipes.perception.data import load_prompts

    thinking = run.config.prompt.thinking
    lm, processor = untrained(cfg, run.config.seed, thinking)
    prompts = load_prompts(run.config, processor).train
    end = processor.tokenizer.get_vocab()["<|im_end|>"]

    def rows(step: int) -> list[Row]:
        rng = random.Random(f"{run.config.seed}-{step}")
        batch = []
        for place, prompt in enumerate(rng.choices(prompts, k=cfg.batch)):
            answer = demonstration(prompt.problem.meta["record"], cfg.label_noise, rng, thinking)
            ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
            batch.append(Row(place, prompt.ids, (*ids, end), pictures=prompt.pictures))
        return batch

    layout = run.config.layout
    vision = VisionPolicy(lm, processor.patcher, processor.banned)
    policy = trainable_of(
        run, "policy", vision, TrainableConfig(optim=cfg.optim), cfg.steps, cfg.pipeline, rows=rows, layout=layout
    )
    supervised.train(run, policy=policy, rows=rows, steps=cfg.steps, layout=layout)
    run.export("policy", out, processor)
    run.finish()


def demonstration(record: Record, noise: LabelNoise, rng: random.Random, thinking: bool = False) -> str:
    """The answer to a scene's question with label noise, its objects in a random order. With thinking it says first
    where each object is (or which letter comes after which), with the same noise."""
    if record.task == "ocr":
        answer = misread(record.text, noise.letter, rng)
        return thought(" ".join(answer), answer) if thinking else answer
    objects, labels = [], [target.label for target in record.objects]  # a wrong label is that of another object
    for target in record.objects:
        if rng.random() < noise.dropped and record.task != "grounding":
            continue
        assert target.box is not None
        label = rng.choice(labels) if rng.random() < noise.label else target.label
        times = 2 if rng.random() < noise.duplicated and record.task != "grounding" else 1
        objects += [LabelledBox(_shaken(target.box, noise.jitter, record.size, rng), label) for _ in range(times)]
    rng.shuffle(objects)
    if not thinking:
        return write_tokens(objects)
    middles = [centre(item.box) for item in objects]
    places = [f"{item.label} {x:.0f} {y:.0f}" for item, (x, y) in zip(objects, middles, strict=True)]
    return thought(";".join(places), write_tokens(objects))


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
