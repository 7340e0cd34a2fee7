"""Seconds that the stages of a run took before, in another run of the same work. No torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepstack.config import ROOT, ConfigError, Resolved, RunConfig, build, flatten, to_dict, without
from stepstack.report import jsonl

# They change neither what a step computes nor on how many machines; what `evals` asks for is done between the stages.
IDLE_KEYS = (
    "name",
    "dir",
    "seed",
    "evals",
    "trackers",
    "tracking",
    "peak_tflops",
    "max_skipped",
    "launch.port",
    "launch.timeout",
)
OWN = ""  # the stage that is the run itself, whose length is the key ``steps``

log = logging.getLogger(__name__)


def seconds_by_stage(folder: Path, config: RunConfig, stages: Mapping[str, str], root: Path = ROOT) -> dict[str, float]:
    """Seconds of all steps of each stage, by its folder, in an earlier run of the same work; {} where none is known.

    ``folder``: of the run, which has its config.json. ``stages``: as of ``LiveReport``. The newest run beside it that
    is finished comes first, then the records in evals/results, which ``stepstack record`` wrote, on another machine as
    a rule: only ratios of what is returned mean anything here. The same work is that of the same config and files but
    for IDLE_KEYS and ``steps``, for which the run's own stage is scaled. Evaluations before and after training are not
    counted.

    A file that cannot be read, or does not hold what it should, is said and passed over: a run does not end for it.
    """
    if len(stages) < 2:
        return {}
    mine = jsonl.read_json(folder / "config.json", "config", "files")
    records = (root / "evals" / "results").glob(f"{config.recipe}-*.json") if _one_core(mine["config"]) else ()
    for file in (*_finished(folder.parent, stages), *sorted(records)):
        try:
            theirs = jsonl.read_json(file)
            if "config" in theirs and _same_work(config, stages, mine, theirs):
                steps = mine["config"].get("steps") if OWN in stages else None
                recorded = "cpu_s_by_stage" in theirs
                return _of_record(theirs, stages, steps) if recorded else _of_run(file.parent, stages, steps)
        except Exception as error:  # an estimate must not cost a run its hours
            _say(file, error)
    return {}


def _say(file: Path, error: Exception) -> None:
    log.warning("%s does not tell how long stages take: %r", file, error)


def _finished(runs: Path, stages: Mapping[str, str]) -> list[Path]:
    """config.json of each finished run with these stages, the newest first."""
    found = []
    for file in runs.glob("*/status.json"):
        try:
            status = jsonl.read_json(file, "state", "stages", "time")
        except (jsonl.JsonError, OSError) as error:
            _say(file, error)
            continue
        if status["state"] == "finished" and status["stages"] == stages:
            found.append((str(status["time"]), file.with_name("config.json")))
    return [file for _, file in sorted(found, reverse=True)]


def _one_core(config: Mapping[str, Any]) -> bool:
    """Whether all work is that of one thread of one process: CPU seconds, all that a record has, are its time then."""
    launch = config["launch"]
    counts = [launch[key] for key in ("nodes", "processes_per_node", "threads")]
    return launch["file"] == "cpu" and counts == [1, 1, 1] and config.get("stream") is None


def _same_work(
    config: RunConfig, stages: Mapping[str, str], mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> bool:
    """Whether two records are of the same work. A key that came after ``theirs`` had its default there."""
    idle = (*IDLE_KEYS, "steps") if OWN in stages else IDLE_KEYS
    now, then = (dict(flatten(without(record["config"], idle))) for record in (mine, theirs))
    # Most differ in a key that both have, which is found in a hundredth of the time that building a config takes.
    if theirs["files"] != mine["files"] or any(key not in now or now[key] != value for key, value in then.items()):
        return False
    try:
        whole = to_dict(build(type(config), Resolved(Path(), theirs["config"], {})))
    except ConfigError:  # a key that came since has no default
        return False
    return dict(flatten(without(whole, idle))) == now


def _of_run(folder: Path, stages: Mapping[str, str], steps: int | None) -> dict[str, float]:
    """Wall seconds by stage, of the first ``steps`` of the run's own; of more than it has, as if it had gone on."""
    rows = {place: jsonl.read(folder / place / "metrics.jsonl") for place in stages}
    seconds = {place: _total(rows[place]) for place in stages}
    if steps is not None:
        counted = [row for row in rows[OWN] if row["step"] <= steps]
        seconds[OWN] = _total(counted) * steps / counted[-1]["step"]
    return seconds


def _total(rows: Sequence[Mapping[str, float]]) -> float:
    return sum(row["time/step"] for row in rows)


def _of_record(record: Mapping[str, Any], stages: Mapping[str, str], steps: int | None) -> dict[str, float]:
    """CPU seconds by stage of a record, which has them by name of the folder, the run's own last."""
    order = sorted(stages, key=lambda place: (place == OWN, place))
    seconds = dict(zip(order, record["cpu_s_by_stage"], strict=True))
    if steps is not None:
        seconds[OWN] *= steps / record["config"]["steps"]
    return seconds
