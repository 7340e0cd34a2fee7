"""PipeWeaver's models and figures (arXiv 2504.14145): profiles in configs/plans, workloads in its evaluation's shape.

Its times are published for one model only, so that the other profiles follow from FLOPs, and its data are not: mixes of
pictures are ours, and so are clips, with as many a microbatch and as long as it says.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepstack import config
from stepstack.config import CONFIGS, ROOT
from stepstack.planning.pipeline import partition
from stepstack.planning.pipeline.graph import PipelineBatch
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.search import SearchOptions
from stepstack.report.formats import Table
from stepstack.report.layout import Publication, validate
from stepstack.simulation.pipeline import study
from stepstack.simulation.pipeline.study import ModelCut, Seconds

RANKS = {"37b": 4, "vlm-s": 4, "vlm-m": 4, "vlm-l": 8, "t2v-s": 4, "t2v-l": 8}
SAMPLES = 2  # batches for which the cut is searched
CAPTION, SECOND = 350.0, 1560.0  # tokens of a clip's text, and of a second of video
CLIPS, LENGTH = (1, 8), (2, 16)  # of a microbatch; seconds of a clip


@dataclass(frozen=True, slots=True)
class Simulated:
    """Seconds of plans of a model on its batches, and the cut: segments and the most items of a part by module."""

    model: str
    ranks: int
    segments: Mapping[str, int]
    most: Mapping[str, int]
    seconds: Seconds


def profile(name: str) -> PipelineProfile:
    """Profile of a model of ``RANKS``."""
    found: PipelineProfile = config.read(PipelineProfile, CONFIGS / "plans" / f"pipeline-profile-{name}.yaml")
    return found


def cut(model: PipelineProfile, batches: Sequence[PipelineBatch], ranks: int) -> ModelCut:
    """ModelCut by the paper's rule, from sample batches."""
    return ModelCut.of(model, ranks, *partition.published(model, batches, ranks))


def clips(batches: int, microbatches: int, seed: int = study.SEED) -> list[PipelineBatch]:
    """Batches of clips with captions for text-to-video models."""
    rng = random.Random(seed)
    found: list[PipelineBatch] = []
    for _ in range(batches):
        counts = [rng.randint(*CLIPS) for _ in range(microbatches)]
        found.append(
            [
                {"text": [CAPTION] * count, "video": [SECOND * rng.randint(*LENGTH) for _ in range(count)]}
                for count in counts
            ]
        )
    return found


def simulate(name: str, options: SearchOptions, microbatches: int = 16) -> Simulated:
    """A model on four batches, with the cut that a search over the first two prefers."""
    model, ranks = profile(name), RANKS[name]
    batches = clips(4, microbatches) if name.startswith("t2v") else study.drawn(study.DRIFT[:4], microbatches)
    segments, most = partition.searched(model, batches[:SAMPLES], ranks, "always")
    found = study.compare(model, batches, ModelCut.of(model, ranks, segments, most), options)
    return Simulated(model.model, ranks, segments, most, found)


def models(options: SearchOptions) -> list[Simulated]:
    """All models."""
    return [simulate(name, options) for name in RANKS]


def models_table(found: Sequence[Simulated]) -> Table:
    """Models by the seconds of static pipelines and of plans, beside the range that the paper reports."""
    reported, source = reported_figures()
    rows = []
    for one in found:
        whole = {name: sum(seconds) for name, seconds in one.seconds.items()}
        best = whole[f"{study.SEARCHED}, W apart"]
        band = reported["T2V over baselines" if one.model.startswith("T2V") else "VLM over baselines"]
        gains = [whole[plan] / whole[study.SEARCHED] - 1 for plan in (study.PARAMETERS, study.STATIC)]
        gains += [whole[plan] / best - 1 for plan in (study.PARAMETERS, study.STATIC, study.FILLED)]
        cut = ", ".join(f"{module} {segments}" for module, segments in one.segments.items())
        rows.append(
            [
                f"{one.model}, {one.ranks} ranks",
                cut,
                f"{whole[study.STATIC]:.1f}",
                *(f"{gain:+.1%}" for gain in gains),
                f"{best / whole[f'{study.BOUND}, W apart'] - 1:.1%}",
                f"{band['least']:+.1%} to {band['most']:+.1%}",
            ]
        )
    head = [
        "simulated",
        "chunks on a rank",
        "best 1F1B family, s",
        "searched, over 1F1B by parameters",
        "over the best 1F1B",
        "W apart, over 1F1B by parameters",
        "over the best 1F1B",
        "over static with W filled in",
        "gap to the bound",
        "reported over baselines",
    ]
    return Table(head, rows, [f"reported, not measured by us: {source}"], "PipeWeaver's models")


def reported_figures() -> tuple[dict[str, Mapping[str, float]], str]:
    """Published figures by key, and their source."""
    file = ROOT / "evals" / "reported" / "pipeweaver.json"
    values: Any = json.loads(file.read_text(encoding="utf-8"))
    publication: Publication = validate(Publication, values, str(file.relative_to(ROOT)))
    return {row.key: row.values for row in publication.rows}, "; ".join(publication.sources.values())
