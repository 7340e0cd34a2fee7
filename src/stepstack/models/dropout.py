"""Dropout that a model applies in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def active_dropout(module: nn.Module, body: Any) -> Iterator[str]:
    """Dropout that is not 0: modules, and the attention's, which is a number that no module shows."""
    yield from (str(m) for m in module.modules() if isinstance(m, nn.Dropout) and m.p > 0)
    if isinstance(body, PreTrainedModel) and (attention := _attention(body)):
        yield f"attention_dropout={attention}"


def _attention(body: PreTrainedModel) -> float | None:
    return body.config.get_text_config().to_dict().get("attention_dropout")
