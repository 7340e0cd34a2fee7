"""`stepstack bench voices`: what is heard of the offline voices, and how far apart they are."""

from __future__ import annotations

import os
from statistics import mean
from typing import Any, get_args

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

from data.drawn import sentences
from data.drawn.sentences import Sentences, Speaker, VoiceName
from recipes.stepaudio.data import Recorder
from stepstack.config import ConfigError
from stepstack.models.speech.judges import SpeakerEncoder
from stepstack.models.speech.whisper import WhisperRecognizer
from stepstack.report.provenance import describe, provenance
from stepstack.scoring.speech import error_rates, word_errors
from stepstack.terminal import console


def measure(count: int = 20) -> dict[str, Any]:
    """Each voice reads the same test lines of stepaudio-tiny, its three speeds among them: word error rate by Whisper
    tiny.en, mean cosine of Resemblyzer within the voice (of two different lines) and to each other voice, and CPU
    seconds a line. ``not_run``: voices whose package is missing, and what is said of it."""
    torch.set_num_threads(1)
    recognizer, encoder = WhisperRecognizer(), SpeakerEncoder()
    rows, embedded, absent = [], dict[str, Tensor](), dict[str, str]()
    for name in track(get_args(VoiceName), description="bench voices"):
        cfg = Sentences(test=count, speakers=(Speaker(name="reader", voice=name),))
        try:
            recorder = Recorder(cfg)
        except ConfigError as error:
            absent[name] = str(error)
            continue
        lines = sentences.lines(cfg, "test")
        began = cpu_seconds()
        waves = [recorder.record(line) for line in lines]
        seconds = (cpu_seconds() - began) / count
        pairs = zip(lines, recognizer.transcribe(waves), strict=True)
        rates = error_rates([word_errors(line.text, heard, "spoken-en") for line, heard in pairs])
        embedded[name] = torch.stack([encoder.embed(wave) for wave in waves])
        made_by = recorder.provenance["reader"]["made_by"]
        rows.append({"voice": name, "made_by": made_by, "wer": rates.mean, "error": rates.error, "seconds": seconds})
    for row in rows:
        row["similarity"] = {other: similarity(embedded[row["voice"]], embedded[other]) for other in embedded}
    judges = {"recogniser": recognizer.name, "normaliser": "spoken-en", "encoder": encoder.name}
    return {"bench": "voices", "lines": count, "rows": rows, "not_run": absent, **judges, "provenance": provenance()}


def cpu_seconds() -> float:
    """CPU seconds of this process and of those that it asked and that have ended."""
    return sum(os.times()[:4])


def similarity(one_BxD: Tensor, other_BxD: Tensor) -> float:
    """Mean cosine of all pairs of two different lines."""
    cosines_BxB = one_BxD @ other_BxD.T
    return float(cosines_BxB[~torch.eye(len(cosines_BxB), dtype=torch.bool)].mean())


def show(result: dict[str, Any]) -> None:
    title = f"{result['lines']} lines a voice: {result['recogniser']}; {result['encoder']}"
    table = Table("voice", "WER", "within", "nearest", "to it", "to others", "CPU-s", title=title)
    for row in result["rows"]:
        others = {name: cosine for name, cosine in row["similarity"].items() if name != row["voice"]}
        near = max(others, key=others.__getitem__, default="")
        table.add_row(
            row["voice"],
            f"{row['wer']:.1%} ± {100 * row['error']:.1f}",
            f"{row['similarity'][row['voice']]:.2f}",
            near,
            f"{others[near]:.2f}" if near else "-",
            f"{mean(others.values()):.2f}" if others else "-",
            f"{row['seconds']:.2f}",
        )
    out = console()
    out.print(table)
    for name, why in result["not_run"].items():
        out.print(f"not run: {name}: {why}")
    out.print(describe(result["provenance"]))
