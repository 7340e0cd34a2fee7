"""The papers of a run, the rows that instruction tuning makes of them, and the prompts that ask for summaries."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence

from data.drawn import papers
from data.drawn.papers import Papers
from data.drawn.splits import SPLITS, Split
from data.media.documents import Document
from data.sets import mdocsum
from recipes.mdocsum.config import Config, Control, FolderData, Instruction, LabelNoise, Sft
from recipes.mdocsum.prompt import END, Lesson, encode, lesson, request_of, special_ids, text_ids
from stepstack.batching.rows import Row
from stepstack.config import ROOT, ConfigError
from stepstack.models.vision.processor import Processor
from stepstack.records import Problem
from stepstack.report.tokens import ShownRow, readable
from stepstack.rl.prompts import PromptSplits

log = logging.getLogger(__name__)


def documents(cfg: Config, split: Split) -> list[Document]:
    """The papers of a split; indices are unique within it."""
    match cfg.data:
        case Papers() as kind:
            return papers.documents(kind, split)
        case FolderData() as kind:
            return mdocsum.load(ROOT / kind.folder, split, kind.limit)


def problems(rows: Sequence[Document]) -> list[Problem]:
    """Papers as problems: the gold is the reference, the paper itself is in ``meta``."""
    return [Problem(row.index, row.name, row.gold, {"document": row}) for row in rows]


def control(cfg: Config, kind: Control, rows: Sequence[Document]) -> list[Problem]:
    """Drawn papers with other pictures as problems; ``meta`` has the gold of before, where figures were exchanged."""
    assert isinstance(cfg.data, Papers)
    if kind == "unrelated":
        return problems([papers.unrelated(row, cfg.data) for row in rows])
    moved = [papers.exchanged(row, cfg.data) for row in rows]
    return [
        Problem(new.index, new.name, new.gold, {"document": new, "before": old.gold})
        for new, old in zip(moved, rows, strict=True)
    ]


def load_prompts(cfg: Config, processor: Processor) -> PromptSplits:
    """Prompts for the summaries of every split; papers that are too long are left out and counted."""
    splits = {}
    for split in SPLITS:
        prompts = [
            encode(problem, request_of(problem.meta["document"], cfg.prompt), processor, cfg.prompt)
            for problem in problems(documents(cfg, split))
        ]
        splits[split] = [prompt for prompt in prompts if len(prompt.ids) <= cfg.prompt.max_tokens]
        if dropped := len(prompts) - len(splits[split]):
            where = f"prompt.max_tokens={cfg.prompt.max_tokens}"
            log.warning("%d of %d %s papers are longer than %s and left out", dropped, len(prompts), split, where)
    if not splits["train"]:
        raise ConfigError(f"no training papers: raise prompt.max_tokens={cfg.prompt.max_tokens}, or lower max_pixels")
    return PromptSplits(**splits)


def row_of(index: int, asked: Lesson, document: Document, processor: Processor, cfg: Config) -> Row:
    """An instruction with its answer and the end of the turn, as a row to learn."""
    prompt = encode(Problem(index, "", document.gold, {}), asked.request, processor, cfg.prompt)
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in asked.answer:
        part = text_ids(text, processor)
        ids += part
        weights += [weight] * len(part)
    end = special_ids(END, processor)
    return Row(
        index,
        prompt.ids,
        (*ids, *end),
        pictures=asked.request.pictures,
        weights=(*weights, *([1.0] * len(end))),
    )


def lesson_rows(
    cfg: Config, stage: Sft, rows: Sequence[Document], processor: Processor, steps: int
) -> Callable[[int], list[Row]]:
    """The batch of each step of instruction tuning, a pure function of (seed, step): endless epochs over the papers,
    each a permutation, with an instruction drawn for each."""
    kinds = [kind for kind, weight in stage.mix.items() if weight]
    weights = [stage.mix[kind] for kind in kinds]

    def batch(step: int) -> list[Row]:
        rng = random.Random(f"{cfg.seed}-lessons-{step}")
        alone = step < stage.figures_first * steps
        drawn = []
        for place, document in enumerate(shuffled(rows, stage.batch, step, cfg.seed)):
            kind: Instruction = "figures" if alone else rng.choices(kinds, weights)[0]
            asked = lesson(document, kind, cfg.prompt, stage.label_noise, rng)
            drawn.append(row_of(place, asked, document, processor, cfg))
        return drawn

    return batch


def shown_rows(cfg: Config, processor: Processor, count: int) -> Iterator[ShownRow]:
    """The first papers, each with the next instruction of the mix, as they are learned."""
    kinds: list[Instruction] = ["summary"]
    noise = LabelNoise()
    if cfg.sft is not None:
        kinds, noise = [kind for kind, weight in cfg.sft.mix.items() if weight], cfg.sft.label_noise
    decode = processor.tokenizer.decode
    for place, document in enumerate(documents(cfg, "train")[:count]):
        kind = kinds[place % len(kinds)]
        asked = lesson(document, kind, cfg.prompt, noise, random.Random(f"{cfg.seed}-{place}"))
        row = row_of(place, asked, document, processor, cfg)
        learned = set(row.learned)
        marks = [*(False for _ in row.prompt_ids), *(at in learned for at in range(len(row.ids)))]
        tokens = readable(lambda ids: str(decode(ids)), [*row.prompt_ids, *row.ids], marks)
        yield ShownRow(f"{document.name}, {kind}", tuple(tokens))


def shuffled(rows: Sequence[Document], batch: int, step: int, seed: int) -> list[Document]:
    """The papers of a step: a batch may lie across two epochs."""
    chosen: list[Document] = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, at = divmod(place, len(rows))
        if not chosen or at == 0:
            order = random.Random(f"{seed}-epoch-{epoch}").sample(range(len(rows)), len(rows))
        chosen.append(rows[order[at]])
    return chosen


def prepare(cfg: Config) -> str:
    """``make data``: read everything once, so that what is wrong is said; returns a line to print."""
    match cfg.data:
        case FolderData() as kind:
            counts = {split: len(documents(cfg, split)) for split in SPLITS}
            return f"{kind.folder}: {counts} papers, all of whose figures and references were read"
        case kind:
            return f"{cfg.name}: the data ({kind.type}) is drawn while training; there is nothing to prepare"
