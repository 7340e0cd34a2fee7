"""Instructions about a paper, and their answers.

The paper's own prompts are not published: the words here are ours. In ids a figure is <|vision_start|>, one
<|image_pad|> a token that the tower makes of it, <|vision_end|>, behind its idx tag; nothing cuts a prompt: a paper
that is too long is left out when the data is loaded.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.drawn.papers import citing_sentence
from data.media.documents import FIGURE, Document
from recipes.mdocsum.config import Instruction, LabelNoise, PromptConfig
from stepstack.generation.prompts import Pictured
from stepstack.generation.types import Prompt
from stepstack.models.vision.processor import Processor
from stepstack.records import Problem
from stepstack.scoring import documents
from stepstack.scoring.documents import NO_FIGURE, PARAGRAPHS, Paragraph

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
REPLY = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
START, STOP, PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"

ABOUT = dict(
    zip(
        PARAGRAPHS,
        ("research background", "proposed method", "experimental results", "conclusions"),
        strict=True,
    )
)
IMAGE = '{"imageRef": "<idx>" or "None", "imageCaption": "..."}'
FORM = f'{{"summary": "...", "image": {IMAGE}}}'
WORDS: dict[Instruction, str] = {
    "summary": "Summarise this paper as a JSON list of exactly four dicts, one each for its research background, "
    f"proposed method, experimental results and conclusions: {FORM}. imageRef is the idx of the figure that belongs to "
    'the paragraph, each figure being behind its idx tag, or "None".',
    "section": "Summarise the {about} of this paper as one JSON dict: " + FORM,
    "captioning": "Caption figure {idx} as a JSON dict: " + IMAGE,
    "retrieval": "Which figure is this: {caption} Answer with a JSON dict: " + IMAGE,
    "choice": "Which figure belongs to this paragraph, if any? {summary} Answer with a JSON dict: " + IMAGE,
    "key_points": "List the key points of the {about} of this paper, a sentence each.",
    "figures": "List the figures of this paper, a JSON dict each: " + IMAGE,
}
SHORT: dict[Instruction, str] = {
    "summary": "summarise: ",
    "section": "{name}: ",
    "captioning": "caption <{idx}>: ",
    "retrieval": "find {caption}: ",
    "choice": "{summary}image: ",
    "key_points": "points of {name}: ",
    "figures": "list: ",
}
ABOUT_FIGURES = ("captioning", "retrieval", "figures")
LOOK_UPS = 4  # references that a tiny model looks up behind its list of figures


@dataclass(frozen=True, slots=True)
class Lesson:
    """An instruction and its answer, in parts that are learned (weight 1) or only read (0)."""

    request: Pictured
    answer: tuple[tuple[str, float], ...]


def request_of(document: Document, cfg: PromptConfig) -> Pictured:
    """How the summary of a paper is asked for."""
    return _request(document, "summary", cfg)


def lesson(document: Document, kind: Instruction, cfg: PromptConfig, noise: LabelNoise, rng: random.Random) -> Lesson:
    """An instruction of a kind about a paper, with the answer of a reference that errs by ``noise``. A paper without
    figures is summarised where a kind asks about one."""
    gold = document.gold
    if not document.figures and kind in ABOUT_FIGURES:
        return summary_lesson(document, gold.paragraphs, cfg)
    number = rng.randrange(len(gold.paragraphs))
    name, paragraph = PARAGRAPHS[number], gold.paragraphs[number]
    slots = {"name": name, "about": ABOUT[name], "summary": paragraph.summary}
    figure = rng.choice(document.figures) if document.figures else None
    match kind:
        case "summary":
            return summary_lesson(document, mislabelled(document, noise, rng), cfg)
        case "section":
            [paragraph] = _mislabel([paragraph], document, noise, rng)
            answer = documents.write([paragraph])[1:-1]
        case "captioning" | "retrieval":
            assert figure is not None
            slots |= {"idx": figure.idx, "caption": figure.caption}
            answer = documents.image_object(figure.idx, figure.caption)
        case "choice":
            [chosen] = _mislabel([paragraph], document, noise, rng)
            answer = documents.image_object(chosen.image, chosen.caption)
        case "key_points":
            answer = " ".join(paragraph.points)
        case "figures":
            return _figures_lesson(document, cfg, rng)
    return Lesson(_request(document, kind, cfg, **slots), ((answer, 1.0),))


def summary_lesson(document: Document, paragraphs: Sequence[Paragraph], cfg: PromptConfig) -> Lesson:
    """The whole summary, with these paragraphs for answer."""
    return Lesson(request_of(document, cfg), ((write_answer(document, paragraphs, cfg), 1.0),))


def write_answer(document: Document, paragraphs: Sequence[Paragraph], cfg: PromptConfig) -> str:
    """A summary as the model is to write it: the published form, behind a list of the figures where ``cfg`` asks for
    one."""
    listed = "".join(documents.image_object(figure.idx, figure.caption) for figure in document.figures)
    return (listed if cfg.listing else "") + documents.write(paragraphs)


def mislabelled(document: Document, noise: LabelNoise, rng: random.Random) -> list[Paragraph]:
    """The reference's paragraphs, with the figures that an annotator may have named."""
    return _mislabel(document.gold.paragraphs, document, noise, rng)


def with_figure(paragraph: Paragraph, document: Document, idx: str) -> Paragraph:
    """A paragraph with another figure, or with "None"."""
    return replace(paragraph, image=idx, caption=document.gold.figures.get(idx, ""))


def encode(problem: Problem, request: Pictured, processor: Processor, cfg: PromptConfig) -> Prompt:
    """Token ids with as many image tokens as each figure has. Names of special tokens in a text are plain text."""
    known = problem.meta.get("document")
    sizes = [figure.size for figure in known.figures] if known else [p.image().size for p in request.pictures]
    chat = cfg.style == "qwen"
    ids = special_ids(SYSTEM if chat else "", processor)
    parts = request.text.split(FIGURE)
    if len(parts) != len(sizes) + 1:
        raise ValueError(
            f"{len(parts) - 1} places for figures in the text of {len(sizes)}: a text must not hold {FIGURE!r}"
        )
    for part, size in zip(parts, [*sizes, None], strict=True):
        ids += text_ids(part, processor)
        if size is not None:
            ids += special_ids(f"{START}{PAD * processor.patcher.tokens(size)}{STOP}", processor)
    return Prompt(problem, (*ids, *special_ids(REPLY if chat else "", processor)), request.pictures)


def text_ids(text: str, processor: Processor) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []


def special_ids(text: str, processor: Processor) -> list[int]:
    """Ids of a text of ours, in which names of special tokens are these."""
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _request(document: Document, kind: Instruction, cfg: PromptConfig, **slots: str) -> Pictured:
    words = (WORDS if cfg.style == "qwen" else SHORT)[kind]
    words = re.sub(r"\{(\w+)\}", lambda slot: slots[slot[1]], words)
    pictures = tuple(figure.picture for figure in document.figures)
    return Pictured(pictures, document.text + ("\n\n" if cfg.style == "qwen" else "") + words)


def _figures_lesson(document: Document, cfg: PromptConfig, rng: random.Random) -> Lesson:
    """The list of figures. A tiny model sees the figures alone, and is then given sentences that cite them, whose
    references it looks up in its own list."""
    listed = "".join(documents.image_object(figure.idx, figure.caption) for figure in document.figures)
    if cfg.style == "qwen":
        return Lesson(_request(document, "figures", cfg), ((listed, 1.0),))
    text = "".join(f"<{figure.idx}>{FIGURE}" for figure in document.figures)
    answer = [(listed, 1.0)]
    for _ in range(LOOK_UPS):
        figure = rng.choice(document.figures)
        answer.append((citing_sentence(figure.caption, rng.choice(PARAGRAPHS)) + " ", 0.0))
        answer.append((documents.image_object(figure.idx, figure.caption), 1.0))
    return Lesson(_request(replace(document, text=text), "figures", cfg), tuple(answer))


def _mislabel(
    paragraphs: Sequence[Paragraph], document: Document, noise: LabelNoise, rng: random.Random
) -> list[Paragraph]:
    marked = []
    for paragraph in paragraphs:
        if paragraph.image != NO_FIGURE:
            others = [figure.idx for figure in document.figures if figure.idx != paragraph.image]
            if rng.random() < noise.first:
                paragraph = with_figure(paragraph, document, document.figures[0].idx)
            elif others and rng.random() < noise.random:
                paragraph = with_figure(paragraph, document, rng.choice(others))
        marked.append(paragraph)
    return marked
