"""Papers with figures and reference summaries, in the form of M-DocSum-Bench (arXiv 2503.21839) as far as it is known.

A folder has train/, select/ and test/, and in each a markdown file and a JSON file of the same stem for each paper. In
the markdown a figure is its idx tag and then the picture, ``<3>![caption](figures/loss.png)``, its path counted from
the file; the JSON is the list of four dicts, ``{"summary": str, "image": {"imageRef": "<idx>" | "None", "imageCaption":
str}}``. The form of the tag is ours, and so is the key "key_points", a list of sentences that a paragraph may have.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.drawn.splits import SPLITS, Split
from data.errors import BadRow, DataError, refuse
from data.media.documents import FIGURE, Document, Figure
from data.media.images import FilePicture, check_aspect
from data.media.texts import parse_json, read_text
from stepstack.scoring.documents import NO_FIGURE, PARAGRAPHS, Paragraph, SummaryGold

PICTURE = re.compile(r"(?:<(\d+)>\s*)?!\[([^\]]*)\]\(([^)\s]+)\)")
FORM = '{"summary": "...", "image": {"imageRef": "<idx>" or "None", "imageCaption": "..."}}'


def load(folder: Path, split: Split, limit: int | None = None) -> list[Document]:
    """The papers of a split, in order of their names. Every figure is opened.

    DataError with up to 20 bad papers: each with its file, the paragraph (row) and what to do; for a folder without
    papers; and for a paper that is in another split too, word by word.
    """
    place = folder / split
    files = sorted(place.glob("*.md"))[:limit]
    if not files:
        raise DataError(f"{place} holds no papers: put <name>.md and <name>.json of each there, or correct data.folder")
    papers, errors = [], []
    for index, file in enumerate(files):
        try:
            papers.append(paper(index, file))
        except (BadRow, DataError) as error:
            errors.append(str(error) if str(error).startswith(str(file.parent)) else f"{file}: {error}")
    if not errors:
        errors = _twice(folder, split, files)
    refuse(errors, of="papers")
    return papers


def paper(index: int, file: Path) -> Document:
    """One paper. BadRow or DataError says what is wrong."""
    source = read_text(file)
    if FIGURE in source:
        raise BadRow(f"the text holds {FIGURE!r} (U+FFFC), which stands for a figure here: remove it")
    figures: list[Figure] = []

    def take(match: re.Match[str]) -> str:
        idx, caption, path = match.groups()
        line = f"line {source.count(chr(10), 0, match.start()) + 1}"
        if idx is None:
            raise BadRow(f"{line}: picture {path} has no idx tag: write <idx> before it")
        if any(figure.idx == idx for figure in figures):
            raise BadRow(f"{line}: idx {idx} is given twice: number the figures")
        figures.append(_figure(idx, caption, file.parent / path, line))
        return f"<{idx}>{FIGURE}"

    text = PICTURE.sub(take, source)
    if not text.strip():
        raise BadRow("is empty: give the paper as markdown")
    gold = reference(file.with_suffix(".json"), {figure.idx: figure.caption for figure in figures})
    return Document(index, file.stem, text, tuple(figures), gold)


def reference(file: Path, captions: Mapping[str, str]) -> SummaryGold:
    """The reference summary of a paper whose figures have these captions. BadRow names the row."""
    if not file.is_file():
        raise BadRow(f"{file.name} does not exist: put the reference summary there")
    rows = parse_json(str(file), read_text(file))
    if not isinstance(rows, list) or len(rows) != len(PARAGRAPHS):
        given = f"{len(rows)} paragraphs" if isinstance(rows, list) else type(rows).__name__
        raise BadRow(f"{file.name} has {given}: must be a list of {len(PARAGRAPHS)}, {FORM}")
    paragraphs = []
    for number, row in enumerate(rows):
        try:
            paragraphs.append(_paragraph(row, captions))
        except BadRow as error:
            raise BadRow(f"{file.name} row {number}: {error}") from None
    return SummaryGold(tuple(paragraphs), dict(captions))


def _paragraph(row: Any, captions: Mapping[str, str]) -> Paragraph:
    image = row.get("image") if isinstance(row, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(row.get("summary"), str) or not isinstance(image, Mapping):
        raise BadRow(f"expected {FORM}")
    idx, caption, points = image.get("imageRef"), image.get("imageCaption", ""), row.get("key_points", [])
    if not row["summary"].strip():
        raise BadRow("key summary is empty: write the paragraph")
    if not isinstance(idx, str) or (idx != NO_FIGURE and idx not in captions):
        known = ", ".join(captions) or "no figures"
        raise BadRow(f'key imageRef is {idx!r}: no figure has this idx; there are {known}, or "None"')
    if not isinstance(caption, str):
        raise BadRow(f"key imageCaption is {caption!r}: must be a text")
    if not isinstance(points, list) or not all(isinstance(point, str) and point.strip() for point in points):
        raise BadRow("key key_points must be a list of sentences")
    return Paragraph(row["summary"], idx, caption, tuple(points))


def _figure(idx: str, caption: str, path: Path, line: str) -> Figure:
    """A figure whose picture was read once. BadRow names line and file."""
    try:
        content = path.read_bytes()
        picture = FilePicture(str(path), hashlib.sha256(content).hexdigest())
        size = picture.image().size
        check_aspect(size, str(path))
    except OSError as error:
        raise BadRow(f"{line}: figure {idx}: {path} cannot be read ({error.strerror}): put the picture there") from None
    except DataError as error:
        raise BadRow(f"{line}: figure {idx}: {error}") from None
    return Figure(idx, picture, caption, size)


def _twice(folder: Path, split: Split, files: list[Path]) -> list[str]:
    """Lines about papers that other splits have too."""
    texts = {file.read_bytes(): file for other in SPLITS if other != split for file in (folder / other).glob("*.md")}
    same = [(file, texts[file.read_bytes()]) for file in files if file.read_bytes() in texts]
    return [f"{file} is the same paper as {other}: keep it in one split" for file, other in same]
