"""Report of a run: the curves, teacher beside student, players, and the engine's keep rates."""

from __future__ import annotations

from pathlib import Path

from data.drawn.splits import Split
from data.media import audio
from data.sets.speech import RATE
from recipes.stepaudio.config import PLAYED, Config
from recipes.stepaudio.data import VOICES, layout_of, load_decoder, recordings, text_tokenizer
from recipes.stepaudio.tasks import LINES
from stepstack.config import ROOT, Resolved, build
from stepstack.core.run import Run
from stepstack.harness.answers import Sample
from stepstack.harness.training import outcome
from stepstack.harness.training.evaluated import Columns, Result, side_by_side
from stepstack.models.lm.config import Pretrained
from stepstack.models.speech.mel import log_mel
from stepstack.models.speech.tokenizer import FRAMES, Codes
from stepstack.report import jsonl
from stepstack.report.html import Marked, Report, Sound
from stepstack.report.spectrogram import spectrogram_png
from stepstack.scoring.speech import word_errors

HEADS = {"before": "teacher", "after": "student"}


def keep_report(run: Run[Config]) -> None:
    """Have the report written while the run goes on."""
    cfg = run.config
    if isinstance(cfg.model, Pretrained):
        about = f"Step-Audio: {cfg.model.path} learns to speak from takes ({cfg.source})."
        run.keep_report(write_report, about, {"": "student"})
        return
    about = (
        f"Step-Audio: a teacher speaks new texts, a student of {cfg.student_shape.size:,} parameters learns its takes"
    )
    if cfg.rl is None:
        run.keep_report(write_report, f"{about} ({cfg.source}).", {"teacher": "teacher", "": "student"})
        return
    stages = {"teacher": "teacher", "student": "student", "grpo": "GRPO"}
    run.keep_report(write_report, f"{about} ({cfg.source}), then by GRPO what sounds right.", stages)


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder. That of a published model has texts and figures, no
    players: what speaks its tokens need not be here."""
    file = folder / "config.json"
    cfg: Config = build(Config, Resolved(file, jsonl.read_json(file, "config")["config"], {}))
    if isinstance(cfg.model, Pretrained):
        return outcome.write(folder)

    def show(report: Report, columns: Columns) -> None:
        _players(report, columns, cfg)
        file = folder / "engine" / "report.json"
        if file.is_file():
            found = jsonl.read_json(file, "rates")
            rows = [(row["by"], row["value"], str(row["takes"]), f"{row['rate']:.3f}") for row in found["rates"]]
            report.table("Kept takes", ("by", "", "takes", "kept"), rows)
            report.details("Texts without a kept take", found["texts_without_a_take"])
            report.details("Codebook use", found["codebooks"])

    return outcome.write(folder, show)


def _players(report: Report, columns: Columns, cfg: Config) -> None:
    """Table of lines: the text, the recording as the codec plays it, and each model's take, with spectrograms and what
    was heard."""
    task = next((name for name in ("test", PLAYED) if all(name in column for column in columns.values())), "select")
    split: Split = "select" if task == "select" else "test"
    shown: list[dict[str, Result]] = [{task: column[task]} if task in column else {} for column in columns.values()]
    decoder, takes = load_decoder(cfg), recordings(cfg, split)
    layout = layout_of(cfg, text_tokenizer(cfg))

    def sound(codes: Codes, words: Marked = ()) -> Sound:
        if not codes[0]:
            return Sound(b"", words=words)
        wave = decoder.decode(codes)
        return Sound(audio.wav(wave.numpy(), RATE), spectrogram_png(log_mel(wave, FRAMES).numpy()), words)

    rows: list[list[Sound | str]] = []
    for samples in side_by_side(*shown)[:LINES]:
        take = takes[samples[0].index]
        line = " ".join(filter(None, (take.line.speaker, take.line.tag, take.line.text)))
        spoken = [sound(layout.split(layout.whole_groups(sample.ids or ())), _heard(sample)) for sample in samples]
        rows.append([line, sound(take.codes), *spoken])
    heads = [HEADS.get(when, when) for when in columns]
    report.details("Voices of the recordings", jsonl.read_json(ROOT / cfg.tokens / VOICES))
    title = "Listen" if task == PLAYED else "Listen: wrong words are marked"
    report.sounds(title, ("text", "recording, through the codec", *heads), rows)


def _heard(sample: Sample) -> Marked:
    """Words that the recogniser heard, the wrong ones marked; none where there was none."""
    if sample.answer is None:
        return ()
    marks = word_errors(sample.problem, sample.answer, "spoken-en").marks
    return [(word, kind != "equal") for word, kind in marks]
