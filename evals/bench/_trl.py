"""Settings that every bench gives to a trainer of TRL: float32 on the CPU, nothing written, nothing printed."""

from __future__ import annotations

from typing import Any

QUIET: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}
