"""Tiny papers that are drawn, not stored: four sections of facts, and small charts that they cite by look alone.

No sentence names a chart by its idx, and where a chart stands says nothing about who cites it: it stands in a section
drawn by itself. To show the right figure one has to see which chart has the look that a section speaks of. A hash of a
paper's words and looks decides which papers are held out, so no stage of training can ever see one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from PIL import Image, ImageDraw
from pydantic import Field, NonNegativeInt

from data.drawn.scenes import RGB
from data.drawn.splits import Split, split_of
from data.media.documents import FIGURE, Document, Figure
from stepstack.bounds import Fraction
from stepstack.config import ConfigError, Strict
from stepstack.scoring.documents import NO_FIGURE, PARAGRAPHS, Paragraph, SummaryGold

Colour = Literal["red", "green", "blue", "orange"]
Kind = Literal["bars", "line", "dots"]
Look = tuple[Colour, Kind]

LOOKS: tuple[Look, ...] = tuple((colour, kind) for colour in get_args(Colour) for kind in get_args(Kind))
WORDS = ("peak", "ramp", "flat", "wave", "step", "drop", "spike", "curve", "slope", "cloud", "trace", "comb")
# Two facts that each section has, and what may stand between them without being one.
KEYS = {
    "background": ("task", "data"),
    "method": ("model", "loss"),
    "results": ("score", "gain"),
    "conclusions": ("limit", "next"),
}
DISTRACTORS = ("note", "page", "year")
MOST_FIGURES = 6
SIDE = 28  # pixels of a chart: one token of Qwen2-VL's tower
HEIGHTS = (4, 23)  # least and greatest height of a chart's marks, pixels
MARKS = 5  # bars, corners or dots of a chart
MAX_FAILED_DRAWS = 20_000  # draws without a new paper, after which there are no more


@dataclass(frozen=True, slots=True)
class Chart:
    """Content of a chart: ``heights`` of its marks in pixels, from left to right."""

    colour: Colour
    kind: Kind
    heights: tuple[int, ...]

    @property
    def look(self) -> Look:
        return self.colour, self.kind

    def image(self) -> Image.Image:
        return render(self)


@dataclass(frozen=True, slots=True)
class Paper:
    """Content of a paper. ``sentences``: those of each section. ``cites``: the figure that each section cites, if any.
    ``places``: (section, sentences before it there) of each figure, in reading order."""

    sentences: tuple[tuple[str, ...], ...]
    facts: tuple[tuple[str, ...], ...]
    cites: tuple[int | None, ...]
    charts: tuple[Chart, ...]
    places: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        """Words, looks and places in one line, of which hashes are taken; not how high the marks are."""
        return f"{self.sentences} {[chart.look for chart in self.charts]} {self.places}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Papers(Strict):
    """How papers are drawn. All ranges are inclusive."""

    type: Literal["papers"] = "papers"
    """Choice of the data: drawn papers."""
    figures: tuple[Annotated[int, Field(ge=1, le=MOST_FIGURES)], Annotated[int, Field(ge=1, le=MOST_FIGURES)]] = (2, 3)
    """Least and most charts of a paper, all of different looks."""
    cites: tuple[Annotated[int, Field(ge=0, le=4)], Annotated[int, Field(ge=0, le=4)]] = (1, 3)
    """Least and most sections that cite a chart, each another one."""
    similar: Fraction = 0.5
    """Chance of a further chart sharing its colour or its kind with an earlier one."""
    distractors: Fraction = 0.3
    """Chance of a section having a sentence that is no key point."""
    values: Annotated[int, Field(ge=2, le=90)] = 10
    """Numbers that a fact may have."""
    captions: Literal["words", "colour and kind"] = "words"
    """Name of a look: a word of its own, or its colour and kind."""
    held_out_looks: Annotated[int, Field(ge=0, le=6)] = 0
    """Looks that no training paper has; every held-out paper has one of them."""
    train: NonNegativeInt = 5000
    """Distinct papers of the training set."""
    select: NonNegativeInt = 100
    """Distinct papers that are watched during training; disjoint from the other sets."""
    test: NonNegativeInt = 400
    """Distinct papers that are reported; disjoint from the other sets."""
    seed: NonNegativeInt = 0
    """Seed of the drawing; which papers are held out does not depend on it."""

    def __post_init__(self) -> None:
        for key in ("figures", "cites"):
            if getattr(self, key)[0] > getattr(self, key)[1]:
                raise ValueError(f"{key}={getattr(self, key)}: the first must not be above the second")
        if self.cites[0] > self.figures[0]:
            raise ValueError(
                f"cites={self.cites}: each section cites another chart, and figures={self.figures}: "
                "lower the first of cites"
            )

    @property
    def unseen(self) -> tuple[Look, ...]:
        """The looks that no training paper has, as different from each other as they can be."""
        order = sorted(LOOKS, key=lambda look: (get_args(Colour).index(look[0]) + get_args(Kind).index(look[1])) % 4)
        return tuple(order[: self.held_out_looks])


def documents(cfg: Papers, split: Split) -> list[Document]:
    """Distinct papers of a split, a pure function of the config. ConfigError where there are not that many."""
    wanted = {"train": cfg.train, "select": cfg.select, "test": cfg.test}[split]
    rng = random.Random(f"{cfg.seed}-{split}")
    distinct: dict[str, Paper] = {}
    in_vain = 0
    while len(distinct) < wanted:
        paper = draw(rng, cfg, split)
        if split_of(str(paper)) == split and str(paper) not in distinct:
            distinct[str(paper)], in_vain = paper, 0
        elif (in_vain := in_vain + 1) == MAX_FAILED_DRAWS:
            raise ConfigError(f"data.{split}={wanted}: only {len(distinct)} such papers were found; ask for fewer")
    return [document(index, cfg, paper) for index, paper in enumerate(distinct.values())]


def draw(rng: random.Random, cfg: Papers, split: Split = "train") -> Paper:
    """Random paper with the looks of a split."""
    looks = draw_looks(rng, cfg, split)
    count = rng.randint(cfg.cites[0], min(cfg.cites[1], len(looks)))
    citing = dict(zip(rng.sample(range(len(PARAGRAPHS)), count), rng.sample(range(len(looks)), count), strict=True))
    sections, facts = [], []
    for number, name in enumerate(PARAGRAPHS):
        told = [_fact(key, rng, cfg) for key in KEYS[name]]
        sentences = list(told)
        if rng.random() < cfg.distractors:
            sentences.insert(rng.randint(0, len(sentences)), _fact(rng.choice(DISTRACTORS), rng, cfg))
        if number in citing:
            cited = citing_sentence(caption(looks[citing[number]], cfg), name)
            sentences.insert(rng.randint(0, len(sentences)), cited)
        sections.append(tuple(sentences))
        facts.append(tuple(told))
    places = []
    for _ in looks:
        section = rng.randrange(len(PARAGRAPHS))
        places.append((section, rng.randint(0, len(sections[section]))))
    cites = tuple(citing.get(number) for number in range(len(PARAGRAPHS)))
    charts = tuple(chart(look, rng) for look in looks)
    return Paper(tuple(sections), tuple(facts), cites, charts, tuple(sorted(places)))


def draw_looks(rng: random.Random, cfg: Papers, split: Split) -> list[Look]:
    """Different looks of a paper, of which a further one may share colour or kind with an earlier one."""
    known = [look for look in LOOKS if look not in cfg.unseen]
    looks = [rng.choice(cfg.unseen if cfg.unseen and split != "train" else known)]
    for _ in range(rng.randint(*cfg.figures) - 1):
        left = [look for look in (known if split == "train" else LOOKS) if look not in looks]
        alike = [look for look in left if any(is_similar(look, other) for other in looks)]
        unlike = [look for look in left if look not in alike]
        looks.append(rng.choice((alike if rng.random() < cfg.similar else unlike) or left))
    rng.shuffle(looks)
    return looks


def chart(look: Look, rng: random.Random) -> Chart:
    """A chart of a look, with marks of random heights."""
    return Chart(*look, tuple(rng.randint(*HEIGHTS) for _ in range(MARKS)))


def is_similar(a: Look, b: Look) -> bool:
    """Whether two looks share colour or kind, and are not the same."""
    return (a[0] == b[0]) != (a[1] == b[1])


def caption(look: Look, cfg: Papers) -> str:
    """The name of a look."""
    return WORDS[LOOKS.index(look)] if cfg.captions == "words" else " ".join(look)


def captions(cfg: Papers) -> list[str]:
    """Names of all looks."""
    return [caption(look, cfg) for look in LOOKS]


def citing_sentence(name: str, section: str) -> str:
    return f"the {name} shows its {section}."


def fact_sentences(cfg: Papers) -> list[str]:
    """Every sentence that may stand in a paper and cites nothing."""
    keys = [*(key for pair in KEYS.values() for key in pair), *DISTRACTORS]
    return [f"{key} {10 + value}." for key in keys for value in range(cfg.values)]


def document(index: int, cfg: Papers, paper: Paper) -> Document:
    """A paper as a document: its markdown with idx tags, its figures, and its reference summary."""
    names = [caption(chart.look, cfg) for chart in paper.charts]
    idx = [str(number + 1) for number in range(len(names))]
    lines = []
    for number, name in enumerate(PARAGRAPHS):
        text = f"\n# {name}\n"
        for place in range(len(paper.sentences[number]) + 1):
            here = [idx[k] for k, at in enumerate(paper.places) if at == (number, place)]
            text += "".join(f"<{tag}>{FIGURE}" for tag in here)
            text += "".join(f"{sentence} " for sentence in paper.sentences[number][place : place + 1])
        lines.append(text)
    paragraphs = []
    for number in range(len(PARAGRAPHS)):
        told, cited = paper.facts[number], paper.cites[number]
        sentences = [s for s in paper.sentences[number] if s in told or (cited is not None and s.startswith("the "))]
        image = (NO_FIGURE, "") if cited is None else (idx[cited], names[cited])
        paragraphs.append(Paragraph(" ".join(sentences) + " ", *image, key_points=told))
    figures = tuple(
        Figure(tag, chart, name, (SIDE, SIDE)) for tag, chart, name in zip(idx, paper.charts, names, strict=True)
    )
    return Document(index, f"paper {index}", "".join(lines), figures, gold_of(paragraphs, figures, cfg))


def gold_of(paragraphs: Sequence[Paragraph], figures: Sequence[Figure], cfg: Papers) -> SummaryGold:
    """The gold, with the figures that are similar to each."""
    looks = dict(zip(captions(cfg), LOOKS, strict=True))
    similar = {
        one.idx: tuple(other.idx for other in figures if is_similar(looks[one.caption], looks[other.caption]))
        for one in figures
    }
    return SummaryGold(tuple(paragraphs), {figure.idx: figure.caption for figure in figures}, similar)


def exchanged(paper: Document, cfg: Papers) -> Document:
    """The same words with the charts moved on by one place: each is now where the one before it was. The gold follows
    the charts."""
    moved = [*paper.figures[1:], *paper.figures[:1]]
    figures = tuple(replace(new, idx=old.idx) for new, old in zip(moved, paper.figures, strict=True))
    now = {figure.caption: figure.idx for figure in figures}
    paragraphs = [
        paragraph if paragraph.image == NO_FIGURE else replace(paragraph, image=now[paragraph.caption])
        for paragraph in paper.gold.paragraphs
    ]
    return replace(paper, figures=figures, gold=gold_of(paragraphs, figures, cfg))


def unrelated(paper: Document, cfg: Papers) -> Document:
    """The same words and gold with charts of looks that the paper does not have."""
    rng = random.Random(f"unrelated {paper.text}")
    had = {figure.caption for figure in paper.figures}
    others = rng.sample([look for look in LOOKS if caption(look, cfg) not in had], len(paper.figures))
    figures = tuple(
        replace(figure, picture=chart(look, rng)) for figure, look in zip(paper.figures, others, strict=True)
    )
    return replace(paper, figures=figures)


def render(content: Chart) -> Image.Image:
    """Picture of a chart in RGB, with hard edges."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen, colour = ImageDraw.Draw(image), RGB[content.colour]
    step = SIDE // MARKS
    tops = [(2 + step * number, SIDE - 1 - height) for number, height in enumerate(content.heights)]
    match content.kind:
        case "bars":
            for x, y in tops:
                pen.rectangle((x, y, x + step - 2, SIDE - 1), fill=colour)
        case "line":
            pen.line([(x + 1, y) for x, y in tops], fill=colour, width=2)
        case "dots":
            for x, y in tops:
                pen.ellipse((x - 1, y - 2, x + 3, y + 2), fill=colour)
    return image


def _fact(key: str, rng: random.Random, cfg: Papers) -> str:
    return f"{key} {10 + rng.randrange(cfg.values)}."
