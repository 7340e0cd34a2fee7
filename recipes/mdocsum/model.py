"""The vision-language model of a run: a published Qwen2-VL or Qwen2.5-VL, or a tiny one made on the spot.

The tiny model's tokens are long pieces. A figure with its caption is one, and so is a sentence that cites it: to name
the figure that a paragraph speaks of, the model attends to the one earlier token of that look, in its own list, and
writes it. A model of this size did not learn references that take two steps (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from data.drawn import papers
from data.drawn.papers import Papers
from recipes.mdocsum.config import Config, TinyVl
from recipes.mdocsum.prompt import encode
from stepstack.core import hf
from stepstack.core.run import Run
from stepstack.generation.build import build_generator
from stepstack.generation.prompts import Pictured
from stepstack.generation.types import EngineError, Generator, Prompt
from stepstack.harness.engine import Question
from stepstack.harness.engines.generator import GeneratorEngine, engine_of, open_generator
from stepstack.models.lm import tiny
from stepstack.models.vision import pretrained
from stepstack.models.vision.config import PretrainedVl
from stepstack.models.vision.policy import ImagePatcher
from stepstack.models.vision.pretrained import load_processor, tiny_at
from stepstack.models.vision.processor import Processor
from stepstack.scoring.documents import NO_FIGURE, PARAGRAPHS, image_object

PATCH = 14


def base_model(run: Run[Config]) -> PretrainedVl:
    """Where the model that the run begins with stands; a tiny one is made there first."""
    cfg = run.config
    match cfg.model:
        case TinyVl() as kind:
            assert isinstance(cfg.data, Papers)
            folder = run.dir / "base" / "model"
            run.save_once(folder, partial(untrained, kind, cfg.data, cfg.seed))
            return tiny_at(folder, PATCH)
        case PretrainedVl() as kind:
            return kind


def placed_at(cfg: Config, folder: Path) -> PretrainedVl:
    """A model folder that a run of this config has made."""
    return cfg.model.moved(folder) if isinstance(cfg.model, PretrainedVl) else tiny_at(folder, PATCH)


def load_model(run: Run[Config], place: PretrainedVl) -> tuple[PreTrainedModel, Processor]:
    lm = run.load(lambda: pretrained.load(place), lambda: pretrained.skeleton(place))
    return lm, load_processor(place)


def skeleton(cfg: Config) -> PreTrainedModel:
    """The model of a config, whose weights take no memory."""
    match cfg.model:
        case TinyVl() as own:
            assert isinstance(cfg.data, Papers)
            data = cfg.data
            return hf.without_memory(lambda: untrained(own, data, cfg.seed)[0])
        case PretrainedVl() as kind:
            return hf.without_memory(lambda: pretrained.skeleton(kind))


def prompt_builder(cfg: Config, processor: Processor) -> Callable[[Question], Prompt]:
    """How the harness puts a question, as training does. EngineError for one without pictures."""

    def build(question: Question) -> Prompt:
        if not isinstance(question.request, Pictured):
            raise EngineError(
                f"question {question.problem.index} is no paper with figures, which this model summarises: "
                "leave the task out"
            )
        return encode(question.problem, question.request, processor, cfg.prompt)

    return build


def sampler(
    run: Run[Config], lm: PreTrainedModel, processor: Processor, place: PretrainedVl
) -> tuple[Generator, GeneratorEngine]:
    """The config's generator with a model's weights, and the same as an engine of evaluations."""
    cfg = run.config
    generator = build_generator(cfg.generator, lm, processor.tokenizer, place.path, run.device, processor)
    prompt = prompt_builder(cfg, processor)
    return generator, engine_of(cfg.generator, generator, processor.tokenizer, prompt=prompt)


def open_engine(cfg: Config, folder: Path, device: torch.device) -> GeneratorEngine:
    """A model folder, answering on ``device`` by the config's generator."""
    place = placed_at(cfg, folder)
    processor = load_processor(place)
    return open_generator(
        cfg.generator,
        place,
        device,
        processor.tokenizer,
        auto=pretrained.AUTO,
        processor=processor,
        prompt=prompt_builder(cfg, processor),
    )


def untrained(cfg: TinyVl, data: Papers, seed: int) -> tuple[PreTrainedModel, Processor]:
    """The tiny model as it is born, with its tokenizer and image processor."""
    words = tiny.tokenizer(pieces=pieces(cfg, data), special=(*tiny.CHAT, *tiny.VISION))
    shape = {name: getattr(cfg, name) for name in ("hidden", "layers", "intermediate", "tower", "depth", "theta")}
    lm = tiny.qwen2_5_vl(words, patch=PATCH, seed=seed, **shape)
    return lm, Processor(words, ImagePatcher(tiny.image_processor(PATCH)))


def pieces(cfg: TinyVl, data: Papers) -> list[str]:
    """Pieces of the tiny tokenizer."""
    tags = [str(number + 1) for number in range(data.figures[1])]
    names, facts = papers.captions(data), papers.fact_sentences(data)
    frame = ['[{"summary":"', '{"summary":"', '","image":', '},{"summary":"', "}]", image_object(NO_FIGURE, "")]
    frame += [*(f"\n# {name}\n" for name in PARAGRAPHS), *(f"<{tag}>" for tag in tags)]
    frame += ["summarise: ", "caption ", "find ", "image: ", "points of ", "list: ", ": ", *PARAGRAPHS, *names]
    if cfg.pieces == "sentences":
        cited = [papers.citing_sentence(name, section) for name in names for section in PARAGRAPHS]
        labels = [image_object(tag, name) for tag in tags for name in names]
        return [*frame, *labels, *(f"{sentence} " for sentence in (*cited, *facts))]
    words = {f"{word} " for sentence in facts for word in sentence.split()}
    words |= {f"{word} " for name in names for word in name.split()} | {word for name in names for word in name.split()}
    words |= {"the ", "shows its ", *(f"{section}. " for section in PARAGRAPHS)}
    return [*frame, *sorted(words), '{"imageRef":"', '","imageCaption":"', '"}', *tags]
