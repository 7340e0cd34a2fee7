"""The generator that a config asks for. No other place knows every engine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepstack.config import ConfigError
from stepstack.generation.config import FileGeneratorConfig, GeneratorConfig, HfConfig, ToolConfig
from stepstack.generation.hf import HfGenerator, waves
from stepstack.generation.tools import ToolGenerator
from stepstack.generation.types import Generator, Prompt, Sampling
from stepstack.generation.vllm.config import VllmConfig, VllmServerConfig
from stepstack.generation.vllm.engine import VllmGenerator
from stepstack.generation.vllm.server import VllmServerGenerator
from stepstack.generation.vllm.vision import VllmVision
from stepstack.models.vision.processor import Processor
from stepstack.user_code import load_name


def build_generator(
    cfg: GeneratorConfig,
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    device: torch.device,
    processor: Processor | None = None,
    tool: ToolConfig | None = None,
) -> Generator:
    """The engine that a config asks for, with the weights of ``lm``.

    ``source``: folder or hub name from which an engine reads the same model by itself. ``processor`` belongs to a model
    that takes pictures; ``tool``: what responses may call. ConfigError for an engine that cannot take pictures.
    """
    engine = _engine(cfg, lm, tokenizer, source, device, processor)
    return engine if tool is None else ToolGenerator(engine, tokenizer, tool, partial(units_of, cfg=cfg))


def _engine(
    cfg: GeneratorConfig,
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    device: torch.device,
    processor: Processor | None,
) -> Generator:
    match cfg:
        case HfConfig():
            if processor is None:
                return HfGenerator(lm, tokenizer, cfg, device)
            return HfGenerator(lm, tokenizer, cfg, device, patcher=processor.patcher, banned=processor.banned)
        case VllmConfig():
            vision = None
            if processor is not None:
                vision = VllmVision(processor.image_token, tuple(processor.banned), *processor.pixels)
            return VllmGenerator(source, cfg, vision)
        case VllmServerConfig():
            if processor is not None:
                raise ConfigError("rollout.generator: vllm_server takes no pictures, take hf or vllm")
            return VllmServerGenerator(cfg)
        case FileGeneratorConfig():
            more = {} if processor is None else {"processor": processor}
            return load_name(cfg.path, cfg.function)(lm, tokenizer, source, device, **more, **cfg.options)


def units_of(prompts: Sequence[Prompt], sampling: Sampling, cfg: GeneratorConfig) -> list[list[Prompt]]:
    """Prompts cut into units of work: the waves of the engine hf, which decode together, and of other engines as many
    as they like to be given at a time."""
    if isinstance(cfg, HfConfig):
        return waves(prompts, sampling, cfg)
    ordered, size = sorted(prompts, key=lambda p: len(p.ids)), max(1, cfg.samples_at_once // sampling.n)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def refuse_server(cfg: GeneratorConfig) -> None:
    """ConfigError where the engine would answer with other weights than the model that is evaluated."""
    if isinstance(cfg, VllmServerConfig):
        raise ConfigError(
            "rollout.generator.type=vllm_server answers with whatever weights its servers hold: give --server URL to "
            "evaluate those, or rollout.generator={type: vllm} (or hf) to evaluate a model"
        )
