"""A run in its trackers: what they are given of it, and how a resumed run goes on in them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from stepstack.config import RunConfig, Tracker, flatten, to_dict
from stepstack.report import jsonl

FILE = "trackers.json"  # in the run's folder
GIVEN_CONFIG = ("wandb", "trackio")  # trackers that take the config as they open


class Trackers:
    """The trackers of a run, of its first process. ``label``: name of the run in them.

    A step stands in no curve twice. TensorBoard forgets the steps after the checkpoint that a run resumes from, and
    gets them again. The others cannot forget: they keep what they have, and get the steps after it. W&B and trackio go
    on in the run of before, by the id that ``trackers.json`` keeps; the rest of accelerate's trackers open a new one.
    """

    def __init__(self, config: RunConfig, folder: Path, label: str):
        self.config, self.folder, self.label = config, folder, label
        self.running: dict[Tracker, GeneralTracker] = {}
        self.last_steps: dict[str, int] = {}

    def start(self, step: int, last: int) -> None:
        """Open the trackers of a run that stands at ``step``; ``last``: the last step that was logged before, -1 for
        none."""
        if not self.config.trackers:
            return
        file = self.folder / FILE
        record: dict[str, Any] = {"id": uuid.uuid4().hex[:8], "trackers": [], "last_steps": {}}
        if file.is_file():
            record = jsonl.read_json(file, *record)
        self.last_steps = record["last_steps"] | {
            name: max(last, record["last_steps"].get(name, -1)) for name in record["trackers"]
        }
        now = {"id": record["id"], "trackers": list(self.config.trackers), "last_steps": self.last_steps}
        jsonl.write_json_atomic(file, now)
        for name in dict.fromkeys(self.config.trackers):
            self.running[name] = self._open(name, record["id"], step)

    def _open(self, name: Tracker, run_id: str, step: int) -> GeneralTracker:
        tracking, values = self.config.tracking, hyperparameters(self.config)
        group = tracking.group or None
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        match name:
            case "tensorboard":
                tracker = kind("tensorboard", self.folder, purge_step=step + 1 if step else 0)
            case "wandb":
                tracker = kind(
                    tracking.project,
                    id=run_id,
                    name=self.label,
                    group=group,
                    tags=list(tracking.tags),
                    config=values,
                    dir=str(self.folder),
                    resume="allow",
                    reinit="create_new",  # a stage's run may be open at the same time
                )
            case "trackio":  # which knows a run by its name alone
                unique = f"{self.label}-{run_id}"
                tracker = kind(tracking.project, name=unique, group=group, config=values, resume="allow")
            case _:
                folder = (self.folder,) if kind.requires_logging_directory else ()
                tracker = kind(tracking.project, *folder)
        tracker.start()
        if name == "tensorboard":  # by the writer: accelerate's way opens another run at each start
            tracker.writer.add_hparams(values, {}, run_name=".")
        elif name not in GIVEN_CONFIG:
            tracker.store_init_configuration(values)
        return tracker

    def log(self, row: Mapping[str, float]) -> None:
        """A row of metrics to all trackers that do not have its ``step``."""
        values = {name: value for name, value in row.items() if name != "step"}
        for name, tracker in self.running.items():
            if name == "tensorboard" or row["step"] > self.last_steps.get(name, -1):
                tracker.log(values, step=int(row["step"]))

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self.running.values():
            tracker.finish()
        self.running = {}


def hyperparameters(config: RunConfig) -> dict[str, Any]:
    """The config by dotted keys; lists are JSON text, since trackers take scalars alone."""
    pairs = flatten(to_dict(config))
    return {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in pairs}
