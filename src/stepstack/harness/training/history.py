"""A run as its folder tells it: configuration, status, and the rows of all its stages in training order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepstack.core.live_report import read_status
from stepstack.report import jsonl
from stepstack.report.charts import StageRows

LAST_STAGE = "training"  # name of the run's own stage where no status says it


@dataclass(frozen=True, slots=True)
class RunHistory:
    """``record``: config.json. ``status``: status.json, None for a run of before it was written. ``stages``: those that
    trained, each with its rows."""

    folder: Path
    record: dict[str, Any]
    status: dict[str, Any] | None
    stages: Sequence[StageRows]

    @property
    def name(self) -> str:
        return self.record["config"]["name"]

    @property
    def running(self) -> bool:
        return self.status is not None and self.status["state"] == "running"

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of process 0 in all steps."""
        return sum(stage.total("cpu_s") for stage in self.stages)

    @property
    def tokens(self) -> float:
        """Tokens that were trained on, as each stage counts them."""
        return sum(stage.total("tokens") for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Wall seconds of all steps."""
        return sum(stage.total("time/step") for stage in self.stages)


def read(folder: Path) -> RunHistory:
    """JsonError for a folder without a whole config.json, and for bad files in it."""
    record = jsonl.read_json(folder / "config.json", "config", "provenance")
    status = read_status(folder)
    return RunHistory(folder, record, status, stages_of(folder, status["stages"] if status else {}))


def stages_of(folder: Path, names: dict[str, str]) -> list[StageRows]:
    """Stages with rows, in the order in which they began; the run's own is the last. A stage that ``names`` does not
    have is called by its folder."""
    files = [file for file in folder.glob("*/metrics.jsonl") if (file.parent / "config.json").is_file()]
    order = list(names)

    def began(file: Path) -> tuple[int, str]:
        place = file.parent.name
        if place in order:
            return order.index(place), ""
        started = jsonl.read_json(file.parent / "config.json", "provenance")["provenance"]["time"]
        return len(order), started

    stages = [
        StageRows(names.get(file.parent.name, file.parent.name), _rows(file)) for file in sorted(files, key=began)
    ]
    stages.append(StageRows(names.get("", LAST_STAGE), _rows(folder / "metrics.jsonl")))
    return [stage for stage in stages if stage.rows]


def _rows(file: Path) -> list[dict[str, Any]]:
    return list(jsonl.read(file)) if file.is_file() else []
