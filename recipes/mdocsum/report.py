"""The curves of an M-DocSum run, and held-out papers beside their summaries, with the true and the chosen figures."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from pydantic import TypeAdapter

from data.media.documents import FIGURE, Document
from recipes.mdocsum.config import Config
from recipes.mdocsum.data import documents
from stepstack.core.run import Run
from stepstack.harness.answers import Sample, by_question, read
from stepstack.harness.training import outcome
from stepstack.harness.training.evaluated import Columns, common
from stepstack.report import jsonl
from stepstack.report.html import Column, FramedPicture, Report
from stepstack.scoring.documents import NO_FIGURE, Paragraph, SummaryGold, parse

PAPERS_IN_REPORT = 12
PICTURE_SIDE = 84  # pixels of a figure's longer side
TRUE_COLOUR, WRONG_COLOUR = "#009638", "#dc0078"


def keep_report(run: Run[Config]) -> None:
    """Have the report written while the run goes on."""
    cfg = run.config
    kinds = [] if cfg.sft is None else ["instruction tuning"]
    stages = {"sft": "instruction tuning"} if cfg.second is not None and cfg.sft is not None else {}
    if cfg.second is None:
        stages |= {"": "instruction tuning"}
    else:
        kinds.append(cfg.second.type.upper())
        stages |= {"grpo" if cfg.second.type == "grpo" else "": cfg.second.type.upper()}
    papers = "drawn papers" if cfg.data.type == "papers" else "papers from a folder"
    about = f"M-DocSum: a {cfg.model.type} vision-language model learns to summarise {papers} and to pick figures"
    run.keep_report(write_report, f"{about}, by {', then '.join(kinds)}.", stages)


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder."""
    text = json.dumps(jsonl.read_json(folder / "config.json", "config")["config"])
    cfg = TypeAdapter(Config).validate_json(text, strict=True)

    def show(report: Report, columns: Columns) -> None:
        samples = first_samples(columns)
        report.table("Figures that were chosen, where one belongs", CHOICE_HEAD, choices(samples))
        report.side_by_side(
            "Held-out papers and their summaries: right figures in green, wrong ones in magenta",
            [side(cfg, paper, samples) for paper in documents(cfg, "test")[:PAPERS_IN_REPORT]],
        )
        pairs = folder / "pairs.json"
        if pairs.is_file():
            kinds = jsonl.read_json(pairs, "kinds")["kinds"].items()
            rows = [(kind, str(n["pairs"]), f"{n['share']:.2f}", f"{n['longer']:+.1f}") for kind, n in kinds]
            report.table("Preference pairs", ("kind", "pairs", "share", "winner longer by, tokens"), rows)

    return outcome.write(folder, show)


CHOICE_HEAD = ("", "true", "chosen right", "a similar one", "another one", "None", "no such idx, or unread")


def first_samples(columns: Columns) -> dict[str, list[Sample]]:
    """The first sample of each paper of the first task at each moment."""
    tasks = common(*columns.values())
    if not tasks:
        return {}
    return {
        when: [question[0] for question in by_question(read(column[tasks[0]][0] / "samples.jsonl"))]
        for when, column in columns.items()
    }


def choices(samples: Mapping[str, Sequence[Sample]]) -> list[tuple[str, ...]]:
    """Counts of what was shown in place of each true figure, by its idx, a row for each moment."""
    rows = []
    for when, answered in samples.items():
        counts: dict[str, Counter[str]] = {}
        for sample in answered:
            gold = SummaryGold.read(sample.gold)
            said = parse(sample.answer or "").paragraphs or ()
            for place, true in enumerate(gold.paragraphs):
                if true.image != NO_FIGURE:
                    kind = choice(said[place].image if place < len(said) else "", true.image, gold)
                    counts.setdefault(true.image, Counter())[kind] += 1
        for idx in sorted(counts):
            rows.append((when, f"figure {idx}", *(str(counts[idx][kind]) for kind in CHOICE_HEAD[2:])))
    return rows


def choice(image: str, true: str, gold: SummaryGold) -> str:
    """Which of CHOICE_HEAD's columns a chosen figure counts in."""
    if image == true:
        return "chosen right"
    if image in gold.similar.get(true, ()):
        return "a similar one"
    if image in gold.figures:
        return "another one"
    return "None" if image == NO_FIGURE else "no such idx, or unread"


def side(cfg: Config, paper: Document, samples: Mapping[str, Sequence[Sample]]) -> list[Column]:
    """A paper, its reference, and what was said of it at each moment."""
    pictures = {figure.idx: png(figure.picture.image()) for figure in paper.figures}
    text: list[str | FramedPicture] = []
    for part, figure in zip(paper.text.split(FIGURE), [*paper.figures, None], strict=True):
        text += [part.strip()] if part.strip() else []
        text += [FramedPicture(pictures[figure.idx])] if figure is not None else []
    columns: list[Column] = [(paper.name, text), ("reference", told(paper.gold.paragraphs, paper, pictures))]
    gold = paper.gold.write()
    for when, answered in samples.items():
        for sample in answered:
            if (sample.index, sample.gold) == (paper.index, gold):
                said = parse(sample.answer or "").paragraphs
                items = [sample.text] if said is None else told(said, paper, pictures)
                columns.append((f"{when}: total {sample.parts.get('total', 0.0):.2f}", items))
    return columns


def told(said: Sequence[Paragraph], paper: Document, pictures: Mapping[str, bytes]) -> Sequence[str | FramedPicture]:
    """Paragraphs with the figures that they show, framed by whether these are the reference's."""
    items: list[str | FramedPicture] = []
    for place, paragraph in enumerate(said):
        true = paper.gold.paragraphs[place].image if place < len(paper.gold.paragraphs) else ""
        items.append(paragraph.summary.strip() or "(nothing)")
        if paragraph.image in pictures:
            frame = TRUE_COLOUR if paragraph.image == true else WRONG_COLOUR
            items.append(FramedPicture(pictures[paragraph.image], frame))
        elif paragraph.image != true:
            items.append(f"[{paragraph.image or 'no image'}; figure {true} belongs here]")
    return items


def png(image: Image.Image) -> bytes:
    """A figure as PNG, no larger than the page shows it."""
    image.thumbnail((2 * PICTURE_SIDE, 2 * PICTURE_SIDE))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
