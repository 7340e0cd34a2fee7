"""The pipeline that adapters are trained for: a published one, or a tiny random one that the run makes."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch

from recipes.videolora.config import Config, TinyPipeline
from stepstack.core import adapters
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.models.video.published import Published, tiny_pipeline

ALPHABET = "".join(c for c in string.printable if not c.isspace())  # letters that the tiny text model knows


def pipeline_of(run: Run[Config]) -> Published:
    """The pipeline of a run; a tiny one is made once, in runs/<name>/pipeline. ConfigError for an unfit one."""
    cfg = run.config.model
    if isinstance(cfg, TinyPipeline):
        run.reseed()
        run.save_once(run.dir / "pipeline", lambda: [tiny_pipeline(cfg.family, ALPHABET)])
    pipeline = published(run.config)
    pipeline.check()
    return pipeline


def published(cfg: Config) -> Published:
    """The pipeline that a config names, or that its run has made."""
    model = cfg.model
    if isinstance(model, TinyPipeline):
        path, dtype = str(cfg.folder / "pipeline"), torch.float32
        return Published(model.family, path, dtype, model.text_tokens, model.frame_rate)
    rate = {} if model.type == "wan" else {"frame_rate": model.frame_rate}
    return Published(model.family, model.path, getattr(torch, model.dtype), model.text_tokens, **rate)


def export_lora(run: Run[Config], dit: Trainable, pipeline: Published) -> Path:
    """Write the adapters, averaged where there is an average, into runs/<name>/lora."""
    folder = run.dir / "lora"
    with dit.averaged():
        weights = dit.finished_adapters()  # every process takes part, one keeps them
    if run.is_main:
        config: dict[str, Any] = adapters.config_of(dit).to_dict()
        pipeline.save_lora(folder, weights, config)
    run.accelerator.wait_for_everyone()
    return folder
