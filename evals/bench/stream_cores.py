"""`stepstack bench stream-cores`: asynchronous training on two cores, unpaced, against two data-parallel processes.

orz-tiny by PPO and by GRPO, on two cores each time: as two processes of DDP, which share all work evenly, and as a
trainer with a worker at staleness 1, where one core generates and the other trains. The bound says what the second can
be over the first at best: that of a step's two stages which takes longer on one core, over half of both. It comes from
a third run, of one process on one core.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from evals.tables import bench_stream_cores
from stepstack.report import jsonl
from stepstack.report.formats import render
from stepstack.report.provenance import provenance

WARM_UP = 2  # steps that are not counted
ALGORITHMS = {"PPO": (), "GRPO": ("advantage={type: grpo}",)}
WAYS = {
    "one process": ("launch.file=cpu",),
    "two data-parallel": ("launch.file=cpu-ddp", "launch.processes_per_node=2"),
    "trainer and worker": ("launch.file=cpu", "policy_loss.is_cap=2", "stream={staleness: 1, workers: 1, pin: true}"),
}


def measure(rounds: int = 3, steps: int = 12) -> dict[str, Any]:
    """Median seconds of a step, and of its generation, by algorithm, way and round."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        base: Path | None = None
        for number in range(rounds):
            for algorithm, words in ALGORITHMS.items():
                for way, more in WAYS.items():
                    folder = Path(place) / f"{algorithm}-{way}-{number}".replace(" ", "-")
                    if base is not None:
                        shutil.copytree(base, folder / "base" / "model")
                    timed = _train(folder, steps, (*words, *more))
                    base = base or folder / "base" / "model"
                    rows.append({"algorithm": algorithm, "way": way, "round": number, **timed})
    return {"bench": "stream-cores", "steps": steps, "rows": rows, "provenance": provenance()}


def _train(folder: Path, steps: int, words: tuple[str, ...]) -> dict[str, float]:
    settings = (f"dir={folder.parent}", f"name={folder.name}", f"steps={WARM_UP + steps}", "seed=1")
    quiet = ("evals=[]", "eval_every=0", "save.every=1000")
    command = [sys.executable, "-m", "stepstack", "launch", "orz-tiny", *settings, *quiet, *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    counted = jsonl.read(folder / "metrics.jsonl")[-steps:]
    return {
        "step": median(row["time/step"] for row in counted),
        "rollout": median(row["time/rollout"] for row in counted),
    }


def show(result: dict[str, Any]) -> None:
    print(render([bench_stream_cores.table_of(result)], "md"), end="")
