"""The weights of one trained role out of a checkpoint, without the run that wrote it, its processes or its optimizers.

What lies in a checkpoint folder, role i being the i-th of state.json's trainables:

    model.safetensors, model_<i>.safetensors   one process and DDP
    pytorch_model_fsdp_<i>/                    FSDP2: torch.distributed.checkpoint, shards of all processes
    pytorch_model/                             DeepSpeed: its own format, refused
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import PreTrainedModel

from stepstack.config import ConfigError
from stepstack.core import checkpoint

WRAPPERS = ("lm.", "body.")  # where models.policy and models.value keep the Hugging Face model
SHARDED = "model."  # accelerate puts the model's state under this key


def read(folder: Path, role: str) -> dict[str, Tensor]:
    """Full tensors of a role under Hugging Face names, on the CPU, adapters merged: what ``Trainable.named_weights``
    gave when ``folder`` (runs/<name>/checkpoints/step-<n>) was saved. A tied head is not among them, nor is a head that
    is not the Hugging Face model's (the critic's).

    ConfigError for a checkpoint that is not whole, a role that it does not hold, and DeepSpeed's format.
    """
    if why := checkpoint.problem(folder):
        raise ConfigError(f"{folder} is no whole checkpoint ({why}): take another step's")
    roles = list(json.loads((folder / "state.json").read_text())["trainables"])
    if role not in roles:
        raise ConfigError(f"{folder} holds no role {role!r}: there are {', '.join(roles)}")
    number = roles.index(role)
    plain = folder / (f"model_{number}.safetensors" if number else "model.safetensors")
    sharded = folder / f"pytorch_model_fsdp_{number}"
    if plain.is_file():
        tensors = load_file(plain)
    elif sharded.is_dir():
        tensors = _from_shards(sharded)
    elif (folder / "pytorch_model").is_dir():
        raise ConfigError(
            f"{folder} was written by DeepSpeed: put its weights together with the zero_to_fp32.py that lies in it, or "
            "evaluate the exported model (runs/<name>/model)"
        )
    else:
        raise ConfigError(
            f"{folder} holds neither {plain.name} nor {sharded.name}: no weights of {role!r}: take another step's"
        )
    wrapper = next((w for w in WRAPPERS if any(name.startswith(w) for name in tensors)), "")
    body = {name.removeprefix(wrapper): value for name, value in tensors.items() if name.startswith(wrapper)}
    return _without_tied(_merged(body, folder, role))


def load_into(lm: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    """Load what ``read`` returned into a model of the same shape, in its dtype. ConfigError where names differ: nothing
    keeps its old value unnoticed."""
    own = dict(lm.named_parameters())
    differ = sorted(own.keys() ^ (tensors.keys() - dict(lm.named_buffers()).keys()))
    if differ:
        raise ConfigError(
            f"a checkpoint of another model: {len(differ)} names differ, as {', '.join(differ[:3])}: give the "
            "config it was trained by"
        )
    lm.load_state_dict(tensors, strict=False)  # a tied head is missing and no parameter of its own


def _from_shards(folder: Path) -> dict[str, Tensor]:
    """Whole tensors of a torch.distributed checkpoint, read by this process alone."""
    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    empty = {
        name: torch.empty(kept.size, dtype=kept.properties.dtype)
        for name, kept in stored.items()
        if isinstance(kept, TensorStorageMetadata)
    }
    dcp.load(empty, checkpoint_id=folder, no_dist=True)
    return {name.removeprefix(SHARDED): value for name, value in empty.items()}


def _merged(body: dict[str, Tensor], folder: Path, role: str) -> dict[str, Tensor]:
    """W + alpha / r * B A for each linear layer with an adapter (``core.trainable.add_lora``)."""
    adapters = {name for name in body if ".lora_" in name}
    if not adapters:
        return body
    alpha, made = _alpha(folder, role), {}
    for name, value in body.items():
        if name in adapters:
            continue
        if name.endswith(".base_layer.weight"):
            owner = name.removesuffix(".base_layer.weight")
            a, b = (body[f"{owner}.lora_{x}.default.weight"] for x in "AB")
            if a.shape[1] != value.shape[1] or b.shape[0] != value.shape[0]:
                raise ConfigError(
                    f"{folder}: the adapter of {owner} is not that of a torch Linear and is not merged here: evaluate "
                    "the exported model (runs/<name>/model)"
                )
            value = value + (b @ a) * (alpha / a.shape[0])
        made[name.replace(".base_layer.", ".")] = value
    return made


def _alpha(folder: Path, role: str) -> int:
    """The adapters' scale, which only the run's config tells."""
    file = folder.parents[1] / "config.json"
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: it holds {role}.lora.alpha, without which {folder} cannot be merged")
    return json.loads(file.read_text())["config"][role]["lora"]["alpha"]


def _without_tied(body: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the second name of one matrix: safetensors keep it once, shards hold a tied head twice."""
    outside = [name for name, value in body.items() if value.dim() == 2 and not re.search(r"\.\d+\.", name)]
    tied = {
        name
        for i, name in enumerate(outside)
        for earlier in outside[:i]
        if body[earlier].shape == body[name].shape and torch.equal(body[earlier], body[name])
    }
    return {name: value for name, value in body.items() if name not in tied}
