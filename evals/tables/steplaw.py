"""Tables of Step Law: the released data's from evals/results/steplaw-released.json, and the tiny sweep's. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from recipes.steplaw.analysis.tables import released_tables, sweep_tables
from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins

RELEASED = "steplaw-released.json"
TINY = "steplaw-tiny-seed*.json"


def released(root: Path) -> list[Table]:
    file = root / "evals" / "results" / RELEASED
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    return released_tables(json.loads(file.read_text()))


def tiny(root: Path) -> list[Table]:
    """The recorded sweeps of tiny models, one below the other."""
    tables = []
    for file in sorted((root / "evals" / "results").glob(TINY)):
        run = json.loads(file.read_text())
        note = (
            f"seed {run['config']['seed']}, {run['fit']['cpu_s']:.0f} CPU-s; measured here: {describe_origins([run])}"
        )
        tables += [*sweep_tables(run["fit"], note)]
    return tables or [Table((), (), ["Not measured yet."])]
