"""The report of a chat run."""

from __future__ import annotations

from pathlib import Path

from recipes.chat.config import Config
from stepstack.core.run import Run
from stepstack.harness.training import outcome


def keep_report(run: Run[Config]) -> None:
    """Have the report written while the run goes on."""
    cfg = run.config
    kinds = [name for name, stage in (("SFT", cfg.sft), ("DPO", cfg.dpo)) if stage is not None]
    stages = {"sft": "SFT", "": "DPO"} if len(kinds) > 1 else {"": kinds[0]}
    size = "" if cfg.model.size is None else f" of {cfg.model.size:,} parameters"
    rows = "drawn dialogues" if cfg.data.type == "dialogues" else "rows of your own"
    run.keep_report(
        write_report, f"A {cfg.model.type} chat model{size} learns by {', then '.join(kinds)} on {rows}.", stages
    )


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder."""
    return outcome.write(folder)
