"""The library model inside a wrapper, transformers' or diffusers': what the two do by other names."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class DiffusersModel(Protocol):
    """The part of diffusers' ModelMixin that is used here. diffusers is an extra and is not imported."""

    def enable_gradient_checkpointing(self) -> None: ...

    def save_config(self, save_directory: Path) -> None: ...


def pretrained(module: nn.Module) -> Any:
    """The Hugging Face model that a module is or wraps. TypeError where there is none."""
    for child in module.modules():
        if isinstance(child, PreTrainedModel | DiffusersModel):
            return child
    raise TypeError(f"{type(module).__name__} holds no model of transformers or diffusers: keep one as its attribute")


def without_memory(build: Callable[[], M]) -> M:
    """The model that ``build`` makes, with parameters that take no memory until weights come."""
    with init_empty_weights(include_buffers=False):
        model = build()
    if isinstance(body := pretrained(model), PreTrainedModel):
        body.tie_weights()  # without memory, two names of one parameter became two
    return model


def enable_gradient_checkpointing(body: Any) -> None:
    """Turn gradient checkpointing on."""
    if isinstance(body, PreTrainedModel):
        with warnings.catch_warnings():  # the one name that transformers 5.17 to 5.23 share; the last warns of it
            warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
            body.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        body.enable_gradient_checkpointing()


def stored_dtype(body: Any) -> torch.dtype:
    """Type of the weights in the folder that the model was read from, which ``models.lm.pretrained`` leaves in its
    config; that of its own weights where it was made here, and of a model of diffusers, whose config names none."""
    stored = body.config.dtype if isinstance(body, PreTrainedModel) else None
    if stored is None:
        stored = next(body.parameters()).dtype
    return getattr(torch, stored) if isinstance(stored, str) else stored  # a text where it was saved from


def save(body: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write what ``from_pretrained`` of the model's class loads: its config, and ``weights``, all of one type, in place
    of its parameters."""
    if isinstance(body, PreTrainedModel):
        body.save_pretrained(folder, state_dict=dict(weights))
        _write_config(body.config, next(iter(weights.values())).dtype, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    body.save_config(folder)
    module = cast(nn.Module, body)
    persistent = module.state_dict().keys()
    buffers = {name: value.cpu() for name, value in module.named_buffers() if name in persistent}
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    save_torch_state_dict({**weights, **buffers}, folder, filename_pattern=pattern, metadata={"format": "pt"})


def _write_config(config: PreTrainedConfig, dtype: torch.dtype, folder: Path) -> None:
    """Write config.json anew: transformers names the type that the model has in memory, not that of the weights which
    are given."""
    config = copy.deepcopy(config)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype
    config.save_pretrained(folder)
