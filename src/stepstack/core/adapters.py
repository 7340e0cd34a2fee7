"""Low-rank adapters by peft: into a model, switched off, and into a folder that peft reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from stepstack.config import ConfigError
from stepstack.core import hf
from stepstack.core.config import Lora

if TYPE_CHECKING:
    from stepstack.core.trainable import Trainable

ADAPTER = "default"  # peft's name of the one adapter
WEIGHTS = "adapter_model.safetensors"  # peft's name of the file


def add_lora(body: nn.Module, cfg: Lora) -> None:
    """Freeze the body and put adapters into it, in place; names of other weights gain ``.base_layer``.

    ConfigError for an adapter on an embedding that is also the head: merged, it would change both, while in training
    it changes one.
    """
    targets = cfg.targets if isinstance(cfg.targets, str) else list(cfg.targets)
    config = LoraConfig(r=cfg.r, lora_alpha=cfg.alpha, lora_dropout=cfg.dropout, target_modules=targets)
    tied = _tied(body)
    inject_adapter_in_model(config, body)
    for name, parameter in body.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # they learn; what they are added to may be bfloat16
    for name, layer in body.named_modules():
        if isinstance(layer, LoraLayer) and layer.get_base_layer() in tied:
            raise ConfigError(
                f"lora.targets={cfg.targets} puts an adapter on {name}, whose weights are both the embedding and the "
                "head: merged it would change both. Leave it out of the targets"
            )


def _tied(body: nn.Module) -> list[nn.Module]:
    """Embedding and head where they have the same weights, else nothing."""
    if not isinstance(body, PreTrainedModel):
        return []
    embedding, head = body.get_input_embeddings(), body.get_output_embeddings()
    return [embedding, head] if head is not None and head.weight is embedding.weight else []


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """The model as it was before it got adapters."""
    with rescale_adapter_scale(module, 0.0):
        yield


def gathered(trainable: Trainable) -> dict[str, Tensor]:
    """The adapters' full weights under peft's names, from the library model on. Every process must call it."""
    body: Any = hf.pretrained(trainable.unwrapped)
    weights = {name: _whole(value) for name, value in body.state_dict().items() if ".lora_" in name}
    return get_peft_model_state_dict(body, state_dict=weights, adapter_name=ADAPTER, save_embedding_layers=False)


def config_of(trainable: Trainable) -> LoraConfig:
    """peft's config of the adapters."""
    body: Any = hf.pretrained(trainable.unwrapped)
    return body.peft_config[ADAPTER]


def save(trainable: Trainable, folder: Path, is_main: bool) -> None:
    """Write the adapters in peft's form, atomically: ``PeftModel.from_pretrained`` puts them on the model that training
    began from. Every process must call it."""
    body: Any = hf.pretrained(trainable.unwrapped)
    named = gathered(trainable)
    if not is_main:
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({f"base_model.model.{name}": value for name, value in named.items()}, partial / WEIGHTS)
    config = config_of(trainable)
    config.base_model_name_or_path = body.name_or_path if isinstance(body, PreTrainedModel) else None
    config.inference_mode = True
    config.save_pretrained(str(partial))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _whole(value: Tensor) -> Tensor:
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu().clone().contiguous()
