"""Report of a run: the curves, teacher beside student, and the engine's keep rates."""

from __future__ import annotations

import json
from pathlib import Path

from stepstack.harness.training import outcome
from stepstack.harness.training.outcome import Columns
from stepstack.report.html import Report

CURVES = {"Loss of the student": ("student/loss",), "Entropy, nats per token": ("student/entropy",)}


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder."""

    def show(report: Report, columns: Columns) -> None:
        file = folder / "engine" / "report.json"
        if file.is_file():
            found = json.loads(file.read_text())
            rows = [(row["by"], row["value"], str(row["takes"]), f"{row['rate']:.3f}") for row in found["rates"]]
            report.table("Kept takes", ("by", "", "takes", "kept"), rows)
            report.details("Texts without a kept take", found["texts_without_a_take"])
            report.details("Codebook use", found["codebooks"])

    return outcome.write(folder, CURVES, show)
