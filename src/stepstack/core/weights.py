"""The weights of one trained role out of a checkpoint, without the run that wrote it, its processes or its optimizers.

They lie in ``<checkpoint>/<role>/``, written by all processes of the run (``core.state``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import PreTrainedModel

from stepstack.config import ConfigError
from stepstack.core import checkpoint, stored
from stepstack.core.state import WEIGHTS, check_format
from stepstack.report import jsonl

WRAPPERS = ("lm.", "body.")  # where models.lm.policy and models.lm.value keep the Hugging Face model


def read(folder: Path, role: str) -> dict[str, Tensor]:
    """Full tensors of a role under Hugging Face names, on the CPU, adapters merged: what ``Trainable.named_weights``
    gave when ``folder`` (runs/<name>/checkpoints/step-<n>) was saved. A tied head is not among them, nor is a head that
    is not the Hugging Face model's (the critic's).

    ConfigError for a checkpoint that is not whole, and for a role that it does not hold.
    """
    if why := checkpoint.problem(folder):
        raise ConfigError(f"{folder} is no whole checkpoint ({why}): take another step's")
    facts = jsonl.read_json(folder / "state.json", "trainables")
    check_format(folder, facts)
    roles = list(facts["trainables"])
    if role not in roles:
        raise ConfigError(f"{folder} holds no role {role!r}: there are {', '.join(roles)}")
    tensors = _whole(folder / role)
    wrapper = next((w for w in WRAPPERS if any(name.startswith(w) for name in tensors)), "")
    body = {name.removeprefix(wrapper): value for name, value in tensors.items() if name.startswith(wrapper)}
    return _merged(body, folder, facts["trainables"][role]["lora_alpha"])


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


def _whole(folder: Path) -> dict[str, Tensor]:
    """Whole tensors of a role, read by this process alone."""
    there = stored.CheckpointReader(folder).read_metadata().state_dict_metadata
    prefix = f"{WEIGHTS}."
    empty = {
        name: torch.empty(kept.size, dtype=kept.properties.dtype)
        for name, kept in there.items()
        if isinstance(kept, TensorStorageMetadata) and name.startswith(prefix)
    }
    stored.load(empty, folder, no_dist=True)
    return {name.removeprefix(prefix): value for name, value in empty.items()}


def _merged(body: dict[str, Tensor], folder: Path, alpha: int) -> dict[str, Tensor]:
    """W + alpha / r * B A for each linear layer with an adapter (``core.adapters.add_lora``)."""
    adapters = {name for name in body if ".lora_" in name}
    if not adapters:
        return body
    merged = {}
    for name, value in body.items():
        if name in adapters:
            continue
        if name.endswith(".base_layer.weight"):
            owner = name.removesuffix(".base_layer.weight")
            a, b = (body.get(f"{owner}.lora_{x}.default.weight") for x in "AB")
            if a is None or b is None or a.shape[1] != value.shape[1] or b.shape[0] != value.shape[0]:
                raise ConfigError(
                    f"{folder}: the adapter of {owner} is not that of a torch Linear and is not merged here: evaluate "
                    "the exported model (runs/<name>/model)"
                )
            value = value + (b @ a) * (alpha / a.shape[0])
        merged[name.replace(".base_layer.", ".")] = value
    return merged


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Sha256 of named tensors, in the order in which they come."""
    total = hashlib.sha256()
    for name, value in tensors:
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
