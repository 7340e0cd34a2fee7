"""A trained model as a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from stepstack.core import adapters, hf
from stepstack.core.trainable import Trainable


def write_model(trainable: Trainable, folder: Path, tokenizer: Any, is_main: bool) -> None:
    """Write a role's weights, adapters merged, in the type that its model was read in, atomically; adapters alone go
    into ``<folder>-adapter``. Every process calls it. NonFiniteGradient, and no folder, where the training ended
    without success (``Trainable.finished_weights``)."""
    body = hf.pretrained(trainable.unwrapped)
    weights = {}
    for name, value in trainable.finished_weights():  # every process takes part, one keeps them
        if is_main:
            weights[name] = value.cpu().clone()
    if is_main:
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        hf.save(body, partial, weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    if trainable.cfg.lora is not None:
        adapters.save(trainable, folder.with_name(f"{folder.name}-adapter"), is_main)
