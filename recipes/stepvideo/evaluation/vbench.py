"""VBench-I2V (github.com/Vchitect/VBench, vbench2_beta_i2v): the folder it wants, itself in another Python, its scores.

VBench asks for numpy<2 and transformers==4.33.2, which no environment of stepstack can hold: it runs in one of its own
(scripts/vbench_venv.sh), from a clone of its repository, which has the prompts that its package lacks. No torch here.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from stepstack.config import ROOT, ConfigError
from stepstack.harness import answers
from stepstack.report import jsonl
from stepstack.report.provenance import provenance

CLONE = "VBench"  # in the folder of benchmark data
INFO = "vbench2_beta_i2v/vbench2_i2v_full_info.json"
RATIO = "16-9"  # of the cropped first frames: of the four that VBench has the nearest to 992 x 544
IMAGES = f"vbench2_beta_i2v/data/crop/{RATIO}"
SAMPLES = 5  # videos a prompt
SCRIPT = (
    "import sys; from vbench2_beta_i2v import VBenchI2V; device, info, out, videos, name, ratio = sys.argv[1:]; "
    "VBenchI2V(device, info, out).evaluate(videos_path=videos, name=name, dimension_list=[name], resolution=ratio)"
)


@dataclass(frozen=True, slots=True)
class Dimension:
    """``low`` and ``high`` are scaled to 0 and 1; ``weight``: in the score of its part (scripts/constant.py there)."""

    part: Literal["i2v", "quality"]
    weight: float = 1.0
    low: float = 0.0
    high: float = 1.0


DIMENSIONS = {
    "camera_motion": Dimension("i2v", weight=0.1),
    "i2v_subject": Dimension("i2v", low=0.1462),
    "i2v_background": Dimension("i2v", low=0.2615),
    "subject_consistency": Dimension("quality", low=0.1462),
    "background_consistency": Dimension("quality", low=0.2615),
    "motion_smoothness": Dimension("quality", low=0.7060, high=0.9975),
    "dynamic_degree": Dimension("quality", weight=0.5),
    "aesthetic_quality": Dimension("quality"),
    "imaging_quality": Dimension("quality"),
}


def totals(scores: Mapping[str, float]) -> dict[str, float]:
    """total, i2v and quality, in [0, 1], of a score of every dimension, by VBench-I2V's scaling and weights.
    ConfigError for a dimension that is missing (its own script takes it for 0)."""
    if missing := [name for name in DIMENSIONS if name not in scores]:
        raise ConfigError(
            f"no score of {', '.join(missing)}: the totals need all {len(DIMENSIONS)} dimensions; score them too"
        )
    parts = {}
    for part in ("i2v", "quality"):
        chosen = {name: d for name, d in DIMENSIONS.items() if d.part == part}
        scaled = {name: (scores[name] - d.low) / (d.high - d.low) for name, d in chosen.items()}
        weight = sum(d.weight for d in chosen.values())
        parts[part] = sum(d.weight * scaled[name] for name, d in chosen.items()) / weight
    return {"total": (parts["i2v"] + parts["quality"]) / 2, **parts}


def lay_out(evaluation: Path) -> Path:
    """<evaluation>/vbench/videos: a link ``<prompt>-<number>.mp4`` to each sample.

    ConfigError for a folder that is no finished evaluation, and for samples that failed or whose clips are gone.
    """
    if not (evaluation / "result.json").is_file():
        raise ConfigError(f"{evaluation} is no finished evaluation: stepstack eval <config> --tasks vbench_i2v")
    rows = answers.read(evaluation / "samples.jsonl")
    if bad := [row for row in rows if not row.media or not (ROOT / row.media[0]).is_file()]:
        raise ConfigError(
            f"{evaluation}: {len(bad)} of {len(rows)} clips failed or are gone, as of {bad[0].problem!r}: "
            "eval again, --again=failed"
        )
    out = evaluation / "vbench" / "videos"
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        place = out / f"{row.problem}-{row.sample}{Path(row.media[0]).suffix}"
        place.unlink(missing_ok=True)
        place.symlink_to((ROOT / row.media[0]).resolve())
    return out


def run(python: Path, clone: Path, evaluation: Path, device: str) -> None:
    """Let VBench score what it has not scored yet, a dimension at a time; results in <evaluation>/vbench/results.

    ``python``: of its own environment. ConfigError for a clone without prompts or first frames, for missing videos (it
    would only warn of them), and where it fails.
    """
    for name in (INFO, IMAGES):
        if not (clone / name).exists():
            raise ConfigError(
                f"{clone / name} does not exist: clone https://github.com/Vchitect/VBench there, then run its "
                "vbench2_beta_i2v/download_data.sh"
            )
    videos, results = lay_out(evaluation), evaluation / "vbench" / "results"
    expected = [f"{prompt}-{number}.mp4" for prompt in prompts(clone) for number in range(SAMPLES)]
    there = {file.name for file in videos.iterdir()}
    if missing := [name for name in expected if name not in there]:
        raise ConfigError(
            f"{videos} lacks {len(missing)} of {len(expected)} videos, as {missing[0]!r}: evaluate all rows"
        )
    for name in DIMENSIONS:
        if (results / f"{name}_eval_results.json").is_file():
            continue
        print(f"VBench: {name}", flush=True)
        words = (device, INFO, str(results.resolve()), str(videos.resolve()), name, RATIO)
        process = subprocess.run([str(python.absolute()), "-c", SCRIPT, *words], cwd=clone, check=False)
        if process.returncode:
            raise ConfigError(
                f"VBench failed on {name} (exit status {process.returncode}); what it said is above: mend that, and "
                "give the same command again"
            )


def prompts(clone: Path) -> dict[str, str]:
    """Prompt -> file of its first frame, of every dimension that counts."""
    rows = json.loads((clone / INFO).read_text(encoding="utf-8"))
    return {row["prompt_en"]: row["image_name"] for row in rows if DIMENSIONS.keys() & set(row["dimension"])}


def read(evaluation: Path) -> dict[str, float]:
    """Dimension -> score in [0, 1], of those that VBench has scored. ConfigError for none, and for one that is NaN."""
    files = sorted((evaluation / "vbench" / "results").glob("*_eval_results.json"))
    scores = {name: row[0] for file in files for name, row in json.loads(file.read_text()).items()}
    if not scores:
        raise ConfigError(f"{evaluation}: VBench has scored nothing there yet: give --python of its environment")
    if bad := [name for name, value in scores.items() if not math.isfinite(value)]:
        raise ConfigError(f"{evaluation}: VBench's {', '.join(bad)} is not finite: remove its result and run it again")
    return {name: scores[name] for name in DIMENSIONS if name in scores}


def conclude(evaluation: Path) -> Table:
    """Write <evaluation>/vbench.json; the table, in percent. Totals are there once every dimension is."""
    scores = read(evaluation)
    missing = [name for name in DIMENSIONS if name not in scores]
    figures = {} if missing else totals(scores)
    record = {"kind": "vbench_i2v", "scores": scores, "totals": figures, "missing": missing, "provenance": provenance()}
    jsonl.write_json_atomic(evaluation / "vbench.json", record)
    table = Table(title="VBench-I2V", caption=f"not scored yet: {', '.join(missing)}" if missing else None)
    table.add_column("dimension")
    table.add_column("%", justify="right")
    for name, value in (figures | scores).items():
        table.add_row(name, f"{100 * value:.2f}")
    return table
