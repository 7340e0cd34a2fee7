"""Vision-language models of transformers by hub name or folder, and what reads their pictures, without torchvision."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForImageTextToText, PreTrainedModel, Qwen2VLImageProcessorPil

from stepstack.models.lm import pretrained
from stepstack.models.vision.config import PretrainedVl
from stepstack.models.vision.policy import ImagePatcher
from stepstack.models.vision.processor import Processor
from stepstack.models.whole import reading

AUTO = AutoModelForImageTextToText


def load(cfg: PretrainedVl) -> PreTrainedModel:
    """Model with its weights; the part that ``cfg.freeze`` names has no gradients."""
    return _frozen(pretrained.load(cfg, AUTO), cfg)


def skeleton(cfg: PretrainedVl) -> PreTrainedModel:
    """Model without its weights, frozen as ``load`` does it."""
    return _frozen(pretrained.skeleton(cfg, AUTO), cfg)


def load_processor(cfg: PretrainedVl) -> Processor:
    """The tokenizer, and the image processor by its class: the automatic one asks for torchvision."""
    tokenizer = pretrained.load_tokenizer(cfg)
    with reading(cfg.path):
        processor = Qwen2VLImageProcessorPil.from_pretrained(
            cfg.path, revision=cfg.revision or "main", min_pixels=cfg.min_pixels, max_pixels=cfg.max_pixels
        )
    return Processor(tokenizer, ImagePatcher(processor))


def tiny_at(folder: Path, patch: int) -> PretrainedVl:
    """A tiny model that was made in ``folder``; its pictures, whose sides are multiples of two patches, stay as they
    are."""
    return PretrainedVl(path=str(folder), min_pixels=(2 * patch) ** 2, max_pixels=1 << 22)


def _frozen(lm: PreTrainedModel, cfg: PretrainedVl) -> PreTrainedModel:
    if cfg.freeze == "tower":
        lm.model.visual.requires_grad_(False)
    return lm
