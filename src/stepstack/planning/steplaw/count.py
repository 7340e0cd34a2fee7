"""Parameters of a causal LM, counted from the fields of its transformers config. No torch.

Step Law's N is the number of parameters between the embedding and the head, where a mixture of experts counts whole.
The authors count the matrices of the blocks alone (``matrices``). Norms and biases add less than a thousandth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepstack.config import ConfigError


@dataclass(frozen=True, slots=True)
class Count:
    """Parameters of the whole model by part. ``active``: those of ``matrices`` that a token passes."""

    attention: int
    feed_forward: int  # experts and shared experts included
    router: int  # with the shared expert's gate
    norms: int
    biases: int
    embedding: int
    head: int  # 0 where it is the embedding
    active: int
    attention_width: int  # heads x their size, summed over layers: what attention over a sequence costs

    @property
    def matrices(self) -> int:
        return self.attention + self.feed_forward + self.router

    @property
    def non_embedding(self) -> int:
        return self.matrices + self.norms + self.biases

    @property
    def total(self) -> int:
        return self.non_embedding + self.embedding + self.head

    def flops_per_token(self, sequence: int) -> float:
        """Training FLOPs of a token: 6 for each weight that it passes, and attention over ``sequence`` tokens."""
        return 6.0 * self.active + 12.0 * sequence * self.attention_width


Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Properties of a model type beyond the blocks that all share.

    They are: biases of q, k and v and of o, normalised q and k, the number of experts and the name of its field, and
    the default of tying head to embedding.
    """

    qkv_bias: Callable[[Fields], bool] = lambda f: bool(f.get("attention_bias", False))
    o_bias: Callable[[Fields], bool] = lambda f: bool(f.get("attention_bias", False))
    mlp_bias: Callable[[Fields], bool] = lambda f: False
    qk_norm: bool = False
    experts: tuple[str, ...] = ()  # the fields, old and new, with their number; none: no experts
    expert_width: str = "intermediate_size"
    shared_width: str = ""


def _never(_: Fields) -> bool:
    return False


FAMILIES = {
    "llama": ModelFamily(mlp_bias=lambda f: bool(f.get("mlp_bias", False))),
    "mistral": ModelFamily(qkv_bias=_never, o_bias=_never),
    "qwen2": ModelFamily(qkv_bias=lambda f: True, o_bias=_never),
    "qwen3": ModelFamily(qk_norm=True),
    "mixtral": ModelFamily(qkv_bias=_never, o_bias=_never, experts=("num_local_experts",)),
    "qwen2_moe": ModelFamily(
        qkv_bias=lambda f: bool(f.get("qkv_bias", True)),
        o_bias=_never,
        experts=("num_experts", "num_local_experts"),
        expert_width="moe_intermediate_size",
        shared_width="shared_expert_intermediate_size",
    ),
    "qwen3_moe": ModelFamily(
        qk_norm=True, experts=("num_experts", "num_local_experts"), expert_width="moe_intermediate_size"
    ),
}


def count(fields: Fields, where: str = "the config") -> Count:
    """Count from the fields of a config.json. ConfigError for a model type not known here and for a missing field."""
    kind = fields.get("model_type")
    if kind not in FAMILIES:
        raise ConfigError(
            f"{where}: model_type = {kind!r}: counted are {', '.join(FAMILIES)}; give the number of others"
        )
    family = FAMILIES[kind]
    hidden, layers, heads, vocab = (
        _number(fields, key, where) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    )
    kv = int(fields.get("num_key_value_heads") or heads)
    size = int(fields.get("head_dim") or hidden // heads)
    q, k = heads * size, kv * size
    attention = layers * hidden * (2 * q + 2 * k)
    biases = layers * ((q + 2 * k) * family.qkv_bias(fields) + hidden * family.o_bias(fields))
    norms = layers * (2 * hidden + 2 * size * family.qk_norm) + hidden
    sparse = _sparse_layers(fields, family, layers, where)
    dense_width = _number(fields, "intermediate_size", where) if sparse < layers else 0
    dense = (layers - sparse) * 3 * hidden * dense_width
    biases += (layers - sparse) * (2 * dense_width + hidden) * family.mlp_bias(fields)
    experts = router = passed = 0
    if sparse:
        number, chosen = _experts(fields, family, where), _number(fields, "num_experts_per_tok", where)
        one = 3 * hidden * _number(fields, family.expert_width, where)
        shared = 3 * hidden * _number(fields, family.shared_width, where) if family.shared_width else 0
        experts, passed = sparse * (number * one + shared), sparse * (chosen * one + shared)
        router = sparse * hidden * (number + (1 if family.shared_width else 0))
    embedding = vocab * hidden
    return Count(
        attention=attention,
        feed_forward=dense + experts,
        router=router,
        norms=norms,
        biases=biases,
        embedding=embedding,
        head=0 if fields.get("tie_word_embeddings", False) else embedding,
        active=attention + dense + passed + router,
        attention_width=layers * q,
    )


def read(path: Path) -> Count:
    """Count of a config.json, or of a model folder that holds one. ConfigError where there is none."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: give a transformers config.json or a folder with one")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}; get the file again") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{file}: must be an object, not {type(fields).__name__}: give a transformers config.json")
    return count(fields, str(file))


def _sparse_layers(fields: Fields, family: ModelFamily, layers: int, where: str) -> int:
    """Number of layers with experts: every ``decoder_sparse_step``-th, except those named in ``mlp_only_layers``."""
    if not family.experts or _experts(fields, family, where) == 0:
        return 0
    step, dense = int(fields.get("decoder_sparse_step") or 1), set(fields.get("mlp_only_layers") or ())
    return sum((layer + 1) % step == 0 and layer not in dense for layer in range(layers))


def _experts(fields: Fields, family: ModelFamily, where: str) -> int:
    """Number of experts, which newer versions of transformers write under another name."""
    return _number(fields, next((name for name in family.experts if name in fields), family.experts[0]), where)


def _number(fields: Fields, key: str, where: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{where}: {key} = {value!r}: must be a whole number")
    return value
