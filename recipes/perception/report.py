"""The curves of a perception run, and held-out pictures with what was predicted before and after."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image, ImageDraw
from pydantic import TypeAdapter

from recipes.perception.config import Config, TinyVl
from recipes.perception.data import problems
from recipes.perception.reward import Gold
from stepstack.core.run import Run
from stepstack.harness.answers import Sample, by_question, read
from stepstack.harness.config import TaskData
from stepstack.harness.training import outcome
from stepstack.harness.training.evaluated import Columns, common
from stepstack.records import gold_text
from stepstack.report import jsonl
from stepstack.report.html import Report
from stepstack.report.sheet import sheet
from stepstack.scoring.vision import answers, perception
from stepstack.scoring.vision.spatial import Box

PICTURES_IN_REPORT, PICTURES_IN_SHEET = 24, 8  # the sheet is pictures.png
PICTURE_SIDE = 224  # pixels of the shorter side
TRUE_COLOUR, PREDICTED_COLOUR = (0, 150, 60), (220, 0, 120)


def keep_report(run: Run[Config]) -> None:
    """Have the report written while the run goes on."""
    cfg = run.config
    stages = {"base": "SFT"} if isinstance(cfg.model, TinyVl) else {}
    data = "drawn pictures" if cfg.data.type in ("objects", "words") else "pictures from files"
    about = (
        f"Perception-R1: a {cfg.model.type} vision-language model learns {cfg.task} on {data} by {cfg.algorithm}, "
        f"{cfg.steps} steps of {cfg.rollouts_per_step} answers."
    )
    run.keep_report(write_report, about, stages | {"": cfg.algorithm})


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder."""
    text = json.dumps(jsonl.read_json(folder / "config.json", "config")["config"])
    cfg = TypeAdapter(Config).validate_json(text, strict=True)

    def show(report: Report, columns: Columns) -> None:
        rows = grid(cfg, columns)
        pairs = [pair for pairs in zip(*rows.values(), strict=True) for pair in pairs]
        report.pictures("Held-out pictures: true in green, predicted in magenta", pairs, PICTURE_SIDE)
        if pairs:
            first = {
                when: [(png, caption.split("\n", 1)[1]) for png, caption in row[:PICTURES_IN_SHEET]]
                for when, row in rows.items()
            }
            jsonl.write_bytes_atomic(folder / "pictures.png", sheet(first))

    return outcome.write(folder, None if isinstance(cfg.data, TaskData) else show)


def grid(cfg: Config, columns: Columns) -> dict[str, list[tuple[bytes, str]]]:
    """The first questions of the test split, a row a moment: (PNG, caption). A task of other rows is not shown."""
    tasks = common(*columns.values())
    if not tasks:
        return {}
    by_moment = {
        when: {(q[0].index, q[0].gold): q[0] for q in by_question(read(column[tasks[0]][0] / "samples.jsonl"))}
        for when, column in columns.items()
    }
    pictures: dict[str, list[tuple[bytes, str]]] = {when: [] for when in by_moment}
    for problem in problems(cfg, "test")[:PICTURES_IN_REPORT]:
        record, key = problem.meta["record"], (problem.index, gold_text(problem.gold))
        for when, samples in by_moment.items():
            if key in samples:
                png, caption = drawn(cfg, record.pictures[0].image(), samples[key])
                pictures[when].append((png, f"{when}: {record.question or 'read'}\n{caption}"))
    return pictures


def drawn(cfg: Config, image: Image.Image, sample: Sample) -> tuple[bytes, str]:
    """(PNG with true and predicted boxes or points, what to read below it)."""
    gold = Gold.read(sample.gold)
    scale = max(1, round(PICTURE_SIDE / min(image.size)))
    canvas = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    answer = sample.answer or ""
    frame = gold.frame(cfg.reward.space)
    predicted = [] if gold.task == "ocr" else [frame.pixels(f.box) for f in answers.boxes(answer, cfg.reward.form)[0]]
    if gold.task == "grounding" and (box := perception.grounding_box(answer, frame, cfg.reward.form)) is not None:
        predicted = [box]
    for boxes, colour in (([box for box, _ in gold.boxes], TRUE_COLOUR), (predicted, PREDICTED_COLOUR)):
        for box in boxes:
            _outline(pen, box, scale, colour)
    for x, y in gold.points:
        pen.ellipse([scale * x - 3, scale * y - 3, scale * x + 3, scale * y + 3], outline=TRUE_COLOUR, width=2)
    out = io.BytesIO()
    canvas.save(out, "PNG")
    figures = "  ".join(f"{name} {value:.2f}" for name, value in list(sample.parts.items())[:2])
    words = f"{answers.strip_end_token(answer)!r}, true {gold.text!r}\n" if gold.task == "ocr" else ""
    counted = f"{len(predicted)} of {gold.count}\n" if gold.task == "counting" else ""
    return out.getvalue(), words + counted + figures


def _outline(pen: ImageDraw.ImageDraw, box: Box, scale: int, colour: tuple[int, int, int]) -> None:
    """Reversed boxes too: a wrong answer is to be seen."""
    x1, x2 = sorted((box[0] * scale, box[2] * scale))
    y1, y2 = sorted((box[1] * scale, box[3] * scale))
    pen.rectangle([x1, y1, x2, y2], outline=colour, width=2)
