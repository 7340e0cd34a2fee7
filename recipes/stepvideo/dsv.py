"""DSV in what a run of this recipe leaves (docs/dsv.md): the exported model and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import safe_open
from torch import Tensor

from recipes.stepvideo.config import Config
from stepstack.config import ConfigError, to_dict
from stepstack.core.run import Run
from stepstack.models.video.dit import VideoDiT
from stepstack.models.video.dsv.config import DsvConfig
from stepstack.models.video.dsv.diffusers import enable_dsv
from stepstack.models.video.dsv.handle import Dsv
from stepstack.report import jsonl
from stepstack.report.html import Report

FILE = "dsv.json"
FIGURE_STEPS = 100  # steps at the end of a run that its figures are means over
FIGURES = ("sparsity", "density", "mass", "recall", "pooled_recall", "loss", "sparse")  # of a block, in FILE


def exported(dsv: Dsv | None) -> dict[str, Any]:
    """For a model folder, whose weights hold the predictors."""
    return {} if dsv is None else {"dsv": to_dict(dsv.config), "dsv_state": dsv.sampling_state()}


def restore(dit: VideoDiT, config: DsvConfig, folder: Path, facts: Mapping[str, Any]) -> None:
    """Enable DSV on a loaded model as it was when ``folder`` was exported; ``facts``: ``exported``, beside others. A
    measured dispatch goes by the speed profile of this machine. ConfigError for a folder that was trained otherwise."""
    if facts.get("dsv") != to_dict(config):  # a dense model's folder has none
        raise ConfigError(
            f"{folder} was trained with dsv={facts.get('dsv')}, the config has {to_dict(config)}: make them the same"
        )
    enable_dsv(dit, config).load_sampling_state(facts["dsv_state"])
    places, weights = dit.state_dict(), dict(predictors(folder))
    if missing := [name for name in places if ".predictor." in name and name not in weights]:
        raise ConfigError(f"{folder} holds no {', '.join(missing)}: export it anew from its run")
    dit.load_state_dict(weights, strict=False)


def predictors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            yield from ((name, weights.get_tensor(name)) for name in weights.keys() if ".predictor." in name)  # noqa: SIM118


def write_figures(run: Run[Config], dsv: Dsv | None) -> None:
    """runs/<name>/dsv.json: means by block over the last steps, when each block was sparse, heat maps by head."""
    if dsv is None or not run.is_main:
        return
    rows = [row for row in jsonl.read(run.metrics_file) if "dsv/stage" in row]
    blocks = [
        {name: fmean(row[f"dsv/{name}/{i:02d}"] for row in rows[-FIGURE_STEPS:]) for name in FIGURES}
        for i in range(len(dsv.attentions))
    ]
    # A row has the stage in which the next step begins.
    steps = {"all": len(rows), "stage 2": sum(row["dsv/stage"] == 2 for row in rows[:-1])}
    facts = {"steps": steps, "last": min(FIGURE_STEPS, len(rows)), "blocks": blocks, "maps": dsv.maps()}
    jsonl.write_json_atomic(run.dir / FILE, facts)


def read_figures(folder: Path) -> dict[str, Any] | None:
    """The figures that ``write_figures`` wrote; None for a dense run and one that is not over."""
    file = folder / FILE
    return jsonl.read_json(file, "blocks", "steps", "last") if file.is_file() else None


def table(facts: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """(title, head, rows) of what was kept."""
    rows = [[f"{i:02d}", *(f"{block[name]:.3f}" for name in FIGURES)] for i, block in enumerate(facts["blocks"])]
    steps = f"{facts['steps']['stage 2']} of {facts['steps']['all']} steps in stage 2"
    return f"DSV by block: {steps}; means over the last {facts['last']}", ["block", *FIGURES], rows


def show(report: Report, folder: Path) -> None:
    """Add the shares of the attention that were kept at the end, by block and by head."""
    if facts := read_figures(folder):
        report.table(*table(facts))
        report.heatmaps("DSV at the end, by head", facts["maps"], "block", "head")
