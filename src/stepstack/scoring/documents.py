"""M-DocEval (M-DocSum-Bench, arXiv 2503.21839): how good a summary of a paper is that shows the paper's figures.

An answer is a JSON list of four paragraphs, ``{"summary": str, "image": {"imageRef": "<idx>" | "None", "imageCaption":
str}}``. Total = .1 IF + .45 TS + .45 IS is the paper's, and so is TS, the F1 of completeness and accuracy. IS is the
weighted mean of OMatch and the Jaccard similarity; its weight is not published, and ours is .5. What the paper leaves
open beside it (what counts as a key point, how IF is counted, the match on paragraphs that have a figure, the confusion
rate) is ours too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from stepstack.scoring.vision.answers import strip_end_token

NO_FIGURE = "None"
PARAGRAPHS = ("background", "method", "results", "conclusions")  # what the four are about, in order
WEIGHTS = {"following": 0.1, "ts": 0.45, "is": 0.45}  # of the total
SENTENCE = re.compile(r"(?<=[.!?])\s+")
OPENING = re.compile(r"\[\s*[{\]]")  # the list of paragraphs, after whatever the model wrote first


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One paragraph of a summary. ``image``: idx of its figure, or "None". ``key_points``: what a reference says that
    must not be left out; empty: each of its sentences."""

    summary: str
    image: str = NO_FIGURE
    caption: str = ""
    key_points: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[str, ...]:
        return self.key_points or tuple(sentences(self.summary))


@dataclass(frozen=True, slots=True)
class SummaryGold:
    """The reference of a document: its paragraphs, and the caption of each figure by its idx. ``similar``: figures that
    one may take for another."""

    paragraphs: tuple[Paragraph, ...]
    figures: Mapping[str, str]
    similar: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def write(self) -> str:
        """The gold as JSON; ``read`` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> SummaryGold:
        row = json.loads(text)
        paragraphs = [
            Paragraph(p["summary"], p["image"], p["caption"], tuple(p["key_points"])) for p in row["paragraphs"]
        ]
        return cls(tuple(paragraphs), row["figures"], {k: tuple(v) for k, v in row["similar"].items()})


@dataclass(frozen=True, slots=True)
class ParsedSummary:
    """An answer as it was read. ``paragraphs`` is None where it holds no JSON list; an entry that is no paragraph
    is an empty one, whose image is "", which is no reference. ``listed``: captions by idx of image objects before the
    list, with which a model may begin."""

    paragraphs: tuple[Paragraph, ...] | None
    complete: bool = False
    listed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """A question of a judge: does ``text`` say what ``point`` says?"""

    point: str
    text: str


# Verdicts on a batch of claims, so that a served model may be asked about many at a time.
ClaimJudge = Callable[[Sequence[Claim]], Sequence[bool]]


def exact(claims: Sequence[Claim]) -> list[bool]:
    """The judge for drawn documents: a point is said where one of the text's sentences is the point, word by word."""
    return [_plain(claim.point) in {_plain(sentence) for sentence in sentences(claim.text)} for claim in claims]


def sentences(text: str) -> list[str]:
    """The sentences of a text, ended by . ! or ? and white space."""
    return [sentence for sentence in SENTENCE.split(text.strip()) if sentence]


def write(paragraphs: Sequence[Paragraph]) -> str:
    """A summary in the published form."""
    return json.dumps(
        [{"summary": p.summary, "image": {"imageRef": p.image, "imageCaption": p.caption}} for p in paragraphs],
        ensure_ascii=False,
        separators=(",", ":"),
    )


def image_object(idx: str, caption: str) -> str:
    """The image of a paragraph as ``write`` writes it."""
    return json.dumps({"imageRef": idx, "imageCaption": caption}, ensure_ascii=False, separators=(",", ":"))


def parse(answer: str) -> ParsedSummary:
    """Read an answer, with or without a code fence. Never raises; text behind the list makes it no list."""
    text = strip_end_token(answer)
    if fence := re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text, re.DOTALL):
        text = fence[1]
    opening = OPENING.search(text)
    if opening is None:
        return ParsedSummary(None, listed=_listed(text))
    listed = _listed(text[: opening.start()])
    rows = _json(text[opening.start() :])
    if not isinstance(rows, list):
        return ParsedSummary(None, listed=listed)
    read = [_paragraph(row) for row in rows]
    complete = bool(read) and all(paragraph is not None for paragraph in read)
    return ParsedSummary(tuple(paragraph or Paragraph("", "") for paragraph in read), complete, listed)


def following(parsed: ParsedSummary, figures: Mapping[str, Any]) -> dict[str, float]:
    """IF, the mean of four checks: a JSON list, of four, each with its keys and types, and references that exist; and
    its strict form, which is 1 where all hold."""
    if parsed.paragraphs is None:
        return {"following": 0.0, "following_strict": 0.0}
    known = all(p.image == NO_FIGURE or p.image in figures for p in parsed.paragraphs)
    checks = (True, len(parsed.paragraphs) == len(PARAGRAPHS), parsed.complete, bool(parsed.paragraphs) and known)
    return {"following": fmean(checks), "following_strict": float(all(checks))}


def score(answer: str, gold: SummaryGold, judge: ClaimJudge = exact, weight: float = 0.5) -> dict[str, float]:
    """``evaluate`` for one answer."""
    return evaluate([(answer, gold)], judge, weight)[0]


def evaluate(
    answers: Sequence[tuple[str, SummaryGold]], judge: ClaimJudge = exact, weight: float = 0.5
) -> list[dict[str, float]]:
    """M-DocEval's figures of each answer, the judge being asked once for all.

    ``weight``: share of OMatch in IS. Beside the scores there are counts, from which rates over many documents are
    made: ``cited`` (paragraphs that have a figure), ``matched`` (those that show it), ``wrong`` (those that show
    another one), ``confused`` (another one that is similar), ``chance`` (matches that guessing would give), ``bare``
    (paragraphs without a figure) and ``bare_right``; ``figures`` are those of the paper, and ``listed`` those that the
    answer names first, with their captions.
    """
    parsed = [parse(answer) for answer, _ in answers]
    claims: list[Claim] = []
    spans = []
    for one, (_, gold) in zip(parsed, answers, strict=True):
        pairs = _pairs(one, gold)
        questions = [_questions(said, reference) for said, reference in pairs]
        spans.append([(len(complete), len(accurate)) for complete, accurate in questions])
        claims += [claim for complete, accurate in questions for claim in (*complete, *accurate)]
    verdicts = iter(judge(claims))
    rows = []
    for one, span, (_, gold) in zip(parsed, spans, answers, strict=True):
        shares = [(_share(verdicts, points), _share(verdicts, said)) for points, said in span]
        completeness, accuracy = (fmean(column) for column in zip(*shares, strict=True))
        rows.append(_figures(one, gold, completeness, accuracy, weight))
    return rows


def _figures(
    parsed: ParsedSummary, gold: SummaryGold, completeness: float, accuracy: float, weight: float
) -> dict[str, float]:
    images = image_figures(parsed, gold)
    rates = following(parsed, gold.figures)
    ts = 2 * completeness * accuracy / (completeness + accuracy) if completeness + accuracy else 0.0
    score_of_images = weight * images["omatch"] + (1 - weight) * images["jaccard"]
    parts = {"parse": float(parsed.paragraphs is not None), **rates, "completeness": completeness}
    parts |= {"accuracy": accuracy, "ts": ts, "is": score_of_images}
    total = sum(share * parts[name] for name, share in WEIGHTS.items())
    right = sum(parsed.listed.get(idx) == caption for idx, caption in gold.figures.items())
    return {"total": total, **parts, **images, "figures": float(len(gold.figures)), "listed": float(right)}


def image_figures(parsed: ParsedSummary, gold: SummaryGold) -> dict[str, float]:
    """Scores and counts of the figures that were chosen; all 0 but what the reference alone decides, where nothing was
    read."""
    pairs = _pairs(parsed, gold)
    cited = [(said, true) for said, true in pairs if true.image != NO_FIGURE]
    bare = [said for said, true in pairs if true.image == NO_FIGURE]
    wrong = [(said, true) for said, true in cited if said.image != true.image and said.image in gold.figures]
    chosen = {said.image for said, _ in pairs} & gold.figures.keys()
    true = {reference.image for _, reference in cited}
    either = len(chosen | true)
    return {
        "omatch": fmean(said.image == reference.image for said, reference in pairs),
        "jaccard": len(chosen & true) / either if either else float(parsed.paragraphs is not None),
        "cited": float(len(cited)),
        "matched": float(sum(said.image == reference.image for said, reference in cited)),
        "wrong": float(len(wrong)),
        "confused": float(sum(said.image in gold.similar.get(reference.image, ()) for said, reference in wrong)),
        "chance": len(cited) / len(gold.figures) if gold.figures else 0.0,
        "bare": float(len(bare)),
        "bare_right": float(sum(said.image == NO_FIGURE for said in bare)),
    }


def _pairs(parsed: ParsedSummary, gold: SummaryGold) -> list[tuple[Paragraph, Paragraph]]:
    """(what was said, reference) of each paragraph of the reference; one that is missing is empty."""
    said = parsed.paragraphs or ()
    return [
        (said[place] if place < len(said) else Paragraph("", ""), true) for place, true in enumerate(gold.paragraphs)
    ]


def _questions(said: Paragraph, true: Paragraph) -> tuple[list[Claim], list[Claim]]:
    """Claims of completeness, and of accuracy. A reference supports its own sentences and its key points."""
    if not said.summary.strip():
        return [], []
    reference = " ".join([true.summary, *(point for point in true.key_points if point not in true.summary)])
    statements = sentences(said.summary)
    return [Claim(point, said.summary) for point in true.points], [Claim(each, reference) for each in statements]


def _share(verdicts: Any, count: int) -> float:
    return fmean(bool(next(verdicts)) for _ in range(count)) if count else 0.0


def _paragraph(row: Any) -> Paragraph | None:
    """The paragraph of an entry of the list; None where a key is missing or has a wrong type."""
    if not isinstance(row, dict) or not isinstance(row.get("summary"), str) or not isinstance(row.get("image"), dict):
        return None
    idx, caption = row["image"].get("imageRef"), row["image"].get("imageCaption")
    if not isinstance(idx, str) or not isinstance(caption, str):
        return None
    return Paragraph(row["summary"], idx, caption)


def _listed(text: str) -> dict[str, str]:
    """Captions of the image objects in a text, one behind the other; the first of an idx counts."""
    captions: dict[str, str] = {}
    for item in re.findall(r"\{[^{}]*\}", text):
        image = _json(item)
        if isinstance(image, dict):
            idx, caption = image.get("imageRef"), image.get("imageCaption")
            if isinstance(idx, str) and isinstance(caption, str):
                captions.setdefault(idx, caption)
    return captions


def _json(text: str) -> Any:
    """The value of a JSON text; None where it is none, or nested deeper than Python reads."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".!?")
