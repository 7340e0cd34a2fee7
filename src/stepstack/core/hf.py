"""The library model inside a wrapper, transformers' or diffusers': what the two do by other names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepstack.config import ConfigError


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


def load_whole(cls: Any, path: str | Path, *, part: bool = False, **how: Any) -> Any:
    """Model of ``cls.from_pretrained``, transformers' or diffusers', with all its weights from the folder or hub name.

    ConfigError where it lacks some or has them in another shape, which would be drawn at random, and where it holds
    others, which would be left out; ``part``: a part of what is saved there is wanted, such as a body without its head.
    """
    model, info = cls.from_pretrained(path, output_loading_info=True, **how)
    lacking = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if lacking:
        raise ConfigError(
            f"{path} lacks {len(lacking)} of the model's weights, or has them in another shape: "
            f"{', '.join(lacking[:5])}: give a folder that was saved whole"
        )
    if (more := sorted(info["unexpected_keys"])) and not part:
        raise ConfigError(
            f"{path} holds {len(more)} weights that a {type(model).__name__} has not: {', '.join(more[:5])}: its "
            "config.json is another model's, or the names were changed (as by DDP's module.): give the folder as "
            "save_pretrained wrote it"
        )
    return model


def enable_gradient_checkpointing(body: Any) -> None:
    """Turn gradient checkpointing on."""
    if isinstance(body, PreTrainedModel):
        with warnings.catch_warnings():  # the one name that transformers 5.17 to 5.23 share; the last warns of it
            warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
            body.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        body.enable_gradient_checkpointing()


def active_dropout(module: nn.Module, body: Any) -> Iterator[str]:
    """Dropout that is not 0: modules, and the attention's, which is a number that no module shows."""
    yield from (str(m) for m in module.modules() if isinstance(m, nn.Dropout) and m.p > 0)
    if isinstance(body, PreTrainedModel) and (attention := body.config.to_dict().get("attention_dropout")):
        yield f"attention_dropout={attention}"


def save(body: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write what ``from_pretrained`` of the model's class loads: its config, and ``weights`` in place of its
    parameters."""
    if isinstance(body, PreTrainedModel):
        body.save_pretrained(folder, state_dict=dict(weights))
        return
    folder.mkdir(parents=True, exist_ok=True)
    body.save_config(folder)
    module = cast(nn.Module, body)
    persistent = module.state_dict().keys()
    buffers = {name: value.cpu() for name, value in module.named_buffers() if name in persistent}
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    save_torch_state_dict({**weights, **buffers}, folder, filename_pattern=pattern, metadata={"format": "pt"})
