"""The vision-language model of a run: a published Qwen2-VL or Qwen2.5-VL, or a tiny Qwen2.5-VL made on the spot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2VLImageProcessorPil,
)

from recipes.perception import base
from recipes.perception.base import TinyVl
from stepstack.config import ConfigError, Strict
from stepstack.core.run import Run
from stepstack.harness.engine import GeneratorEngine, Question, engine_of, refuse_server
from stepstack.models.tiny import VISION
from stepstack.models.vision import Reader
from stepstack.rl.generate import HfConfig, HfGenerator
from stepstack.rl.types import Generator, Prompt
from stepstack.rl.vllm import VllmConfig, VllmGenerator, VllmServerConfig
from stepstack.rl.vllm_vision import Sight
from stepstack.scoring.spatial import smart_resize

if TYPE_CHECKING:
    from recipes.perception.recipe import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedVl(Strict):
    """By hub name or local path, read in ``dtype``. Pictures are resized to between ``min_pixels`` and ``max_pixels``;
    ``freeze`` tower trains the language model alone (adapters: actor.lora)."""

    type: Literal["pretrained"] = "pretrained"
    path: str
    revision: str | None = None
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    dtype: Literal["float32", "bfloat16"] = "float32"
    min_pixels: int = 3136
    max_pixels: int = 1_000_000
    freeze: Literal["none", "tower"] = "none"

    def model_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of a picture as the model sees it."""
        return smart_resize(*size, min_pixels=self.min_pixels, max_pixels=self.max_pixels)


@dataclass(frozen=True, slots=True)
class Kit:
    """What stands between texts and pictures and the model: its tokenizer and its image processor."""

    tokenizer: PreTrainedTokenizerBase
    reader: Reader

    @property
    def banned(self) -> list[int]:
        """Tokens that stand for pictures: one that was sampled would have no picture."""
        known = self.tokenizer.get_vocab()
        return [known[name] for name in VISION]

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.reader.processor.save_pretrained(folder)


def load_model(run: Run[Config]) -> tuple[PreTrainedModel, Kit, str]:
    """(model, kit, folder or hub name that an engine of its own can load the same model from)."""
    cfg = run.config
    match cfg.model:
        case TinyVl() as kind:
            made = run.dir / "base" / "model"
            base.make(run, kind, made)
            place = tiny_at(made)
        case PretrainedVl() as kind:
            place = kind
    lm = run.load(lambda: weights_of(place), lambda: skeleton_of(place))
    if place.freeze == "tower":
        lm.model.visual.requires_grad_(False)
    return lm, kit_of(place), place.path


def tiny_at(folder: Path) -> PretrainedVl:
    """A tiny model that was made in ``folder``; its scenes are taken as they are."""
    return PretrainedVl(path=str(folder), min_pixels=(2 * base.PATCH) ** 2, max_pixels=1 << 22)


def weights_of(cfg: PretrainedVl) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(
        cfg.path, revision=cfg.revision, attn_implementation=cfg.attention, dtype=getattr(torch, cfg.dtype)
    )


def skeleton_of(cfg: PretrainedVl) -> PreTrainedModel:
    """The same model without its weights."""
    config = AutoConfig.from_pretrained(cfg.path, revision=cfg.revision)
    return AutoModelForImageTextToText.from_config(
        config, attn_implementation=cfg.attention, dtype=getattr(torch, cfg.dtype)
    )


def kit_of(cfg: PretrainedVl) -> Kit:
    """The tokenizer, and the image processor by its class: the automatic one asks for torchvision."""
    tokenizer = AutoTokenizer.from_pretrained(cfg.path, revision=cfg.revision)
    processor = Qwen2VLImageProcessorPil.from_pretrained(
        cfg.path, revision=cfg.revision or "main", min_pixels=cfg.min_pixels, max_pixels=cfg.max_pixels
    )
    return Kit(tokenizer, Reader(processor))


def make_generator(cfg: Config, lm: PreTrainedModel, kit: Kit, source: str, device: torch.device) -> Generator:
    match cfg.rollout.generator:
        case HfConfig() as kind:
            return HfGenerator(lm, kit.tokenizer, kind, device, reader=kit.reader, banned=kit.banned)
        case VllmConfig() as kind:
            processor = kit.reader.processor
            least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
            token = kit.tokenizer.get_vocab()["<|image_pad|>"]
            return VllmGenerator(source, kind, Sight(token, tuple(kit.banned), least, most))
        case VllmServerConfig():
            raise ConfigError("rollout.generator: vllm_server takes no pictures, take hf or vllm")


def asking(cfg: Config, kit: Kit) -> Callable[[Question], Prompt]:
    """How the harness puts a question: as training does."""
    from recipes.perception.data import as_prompt

    return lambda question: as_prompt(question.problem, kit, cfg.prompt)


def open_engine(cfg: Config, folder: Path, device: torch.device) -> GeneratorEngine:
    """A model folder, answering on ``device`` by the config's generator; vLLM reads its weights by itself."""
    refuse_server(kind := cfg.rollout.generator)
    place = dataclasses.replace(cfg.model, path=str(folder)) if isinstance(cfg.model, PretrainedVl) else tiny_at(folder)
    lm = weights_of(place) if isinstance(kind, HfConfig) else skeleton_of(place)
    kit = kit_of(place)
    generator = make_generator(cfg, lm, kit, str(folder), device)
    module = (lambda: lm.to(device)) if isinstance(kind, HfConfig) else None  # type: ignore[arg-type]
    return engine_of(kind, generator, kit.tokenizer, lm=module, prompt=asking(cfg, kit))
