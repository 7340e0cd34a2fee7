"""Report of a run: the curves, teacher beside student, players, and the engine's keep rates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from data.media import audio
from data.sets.speech import RATE
from recipes.stepaudio.config import Config
from recipes.stepaudio.data import layout_of, load_decoder, recordings, text_tokenizer
from stepstack.config import Resolved, build
from stepstack.harness.answers import Sample
from stepstack.harness.training import outcome
from stepstack.harness.training.outcome import Columns, side_by_side
from stepstack.report.html import Marked, Report
from stepstack.scoring.speech import word_errors

CURVES = {"Loss of the student": ("policy/loss",), "Entropy, nats per token": ("policy/entropy",)}
PLAYED = 12  # lines with players
HEADS = {"before": "teacher", "after": "student"}


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder."""

    def show(report: Report, columns: Columns) -> None:
        _players(report, columns, folder)
        file = folder / "engine" / "report.json"
        if file.is_file():
            found = json.loads(file.read_text())
            rows = [(row["by"], row["value"], str(row["takes"]), f"{row['rate']:.3f}") for row in found["rates"]]
            report.table("Kept takes", ("by", "", "takes", "kept"), rows)
            report.details("Texts without a kept take", found["texts_without_a_take"])
            report.details("Codebook use", found["codebooks"])

    return outcome.write(folder, CURVES, show)


def _players(report: Report, columns: Columns, folder: Path) -> None:
    """Table of lines: the text, the recording as the codec plays it, and each model's take with what was heard."""
    file = folder / "config.json"
    cfg: Config = build(Config, Resolved(file, json.loads(file.read_text())["config"], {}))
    decoder, takes = load_decoder(cfg), recordings(cfg, "test")
    layout = layout_of(cfg, text_tokenizer(cfg))

    def sound(ids: Sequence[int]) -> bytes:
        codes = layout.split(layout.whole_groups(ids))
        return audio.wav(decoder.decode(codes).numpy(), RATE) if codes[0] else b""

    def heard(sample: Sample) -> Marked:
        marks = word_errors(sample.problem, sample.answer or "", "spoken-en").marks
        return [(word, kind != "equal") for word, kind in marks]

    rows: list[list[bytes | Marked]] = []
    for samples in side_by_side(*columns.values())[:PLAYED]:
        take = takes[samples[0].index]
        line = f"{take.line.speaker} {take.line.tag} {take.line.text}"
        row: list[bytes | Marked] = [[(line, False)], audio.wav(decoder.decode(take.codes).numpy(), RATE)]
        for sample in samples:
            row += [sound(sample.ids or ()), heard(sample)]
        rows.append(row)
    heads = [head for when in columns for head in (HEADS.get(when, when), "heard")]
    report.sounds("Listen", ("line", "recording, through the codec", *heads), rows)
