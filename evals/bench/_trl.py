"""What every bench asks of a trainer of TRL's: float32 on the CPU, and nothing written or printed."""

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
