"""Preference pairs: the model's own samples, best against worst by M-DocEval, and references against spoiled ones.

How the paper makes its rejected answers is not published; these kinds are ours. They keep the length where they can, so
that DPO does not learn length: the share and the difference in length of each kind are in ``pairs.json``.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from data.media.documents import Document
from recipes.mdocsum.config import Config, PairKind
from recipes.mdocsum.prompt import END, special_ids, text_ids, with_figure, write_answer
from recipes.mdocsum.reward import make_metric
from stepstack.batching.rows import Row
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.generation.types import Generator, Prompt, Rollout
from stepstack.models.vision.processor import Processor
from stepstack.records import Score
from stepstack.report import jsonl
from stepstack.scoring.documents import NO_FIGURE, Paragraph, sentences

log = logging.getLogger(__name__)

SAMPLED: PairKind = "sampled"


@dataclass(frozen=True, slots=True)
class PreferredIds:
    """Two answers to the same prompt, as token ids. ``prompt``: place of the prompt among those that pairs are of."""

    prompt: int
    kind: PairKind
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def load_pairs(
    run: Run[Config], prompts: Sequence[Prompt], generator: Generator, processor: Processor
) -> list[PreferredIds]:
    """The pairs of a run, made once by all processes together, in runs/<name>/pairs.jsonl."""
    file = run.dir / "pairs.jsonl"
    exists = file.is_file()
    if not all(run.gather([exists])):
        started = time.process_time()
        pairs = make_pairs(run, prompts, generator, processor)
        facts = {"kinds": shares(pairs), "cpu_s": time.process_time() - started}  # of this process
        if run.is_main:
            jsonl.write_json_atomic(run.dir / "pairs.json", facts)
            jsonl.write_rows_atomic(file, [asdict(pair) for pair in pairs])
        run.accelerator.wait_for_everyone()
    rows: list[dict[str, Any]] = jsonl.read(file)
    pairs = [PreferredIds(r["prompt"], r["kind"], tuple(r["chosen"]), tuple(r["rejected"])) for r in rows]
    if len(pairs) < 2:
        raise ConfigError(
            f"{len(prompts)} papers gave {len(pairs)} pairs: lower pairs.margin, ask for more papers or samples, or "
            "for other kinds"
        )
    for kind, figures in shares(pairs).items():
        log.info("pairs: %s %s", kind, figures)
    return pairs


def make_pairs(
    run: Run[Config], prompts: Sequence[Prompt], generator: Generator, processor: Processor
) -> list[PreferredIds]:
    """All pairs, ordered by prompt; the same on every process, and for any number of them."""
    cfg = run.config.pairs
    pairs: list[PreferredIds] = []
    if cfg.kinds.get(SAMPLED, 0):
        mine = list(prompts)[run.rank :: run.processes]
        place = {prompt.problem.index: number for number, prompt in enumerate(prompts)}
        metric = make_metric(run.config)
        for group in generator.generate(mine, cfg.sampling.replace(seed=run.config.seed)):
            best = choose(group.rollouts, metric(group.rollouts), cfg.margin)
            if best is not None:
                pairs.append(PreferredIds(place[group.prompt.problem.index], SAMPLED, *best))
        pairs = run.gather(pairs)
    pairs += constructed(run.config, prompts, processor)
    return sorted(pairs, key=lambda pair: (pair.prompt, pair.kind))


def choose(
    rollouts: Sequence[Rollout], scores: Sequence[Score], margin: float
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(best, worst) of the samples of a paper, the best being one that ended by itself; None where they are nearer than
    the margin. Equal ones count by their order."""
    ended = [place for place, rollout in enumerate(rollouts) if rollout.finish == "stop"]
    if not ended:
        return None
    best = max(ended, key=lambda place: (scores[place].value, -place))
    worst = min(range(len(rollouts)), key=lambda place: (scores[place].value, place))
    if scores[best].value - scores[worst].value < margin or rollouts[best].ids == rollouts[worst].ids:
        return None
    return rollouts[best].ids, rollouts[worst].ids


def constructed(cfg: Config, prompts: Sequence[Prompt], processor: Processor) -> list[PreferredIds]:
    """A reference against a spoiled one for each prompt, of a kind drawn by the config's weights; a paper that a kind
    has nothing to spoil in has none."""
    weights = {kind: weight for kind, weight in cfg.pairs.kinds.items() if kind != SAMPLED and weight}
    if not weights:
        return []
    end = special_ids(END, processor)
    pairs = []
    for place, prompt in enumerate(prompts):
        rng = random.Random(f"{cfg.seed}-pairs-{prompt.problem.index}")
        [kind] = rng.choices(list(weights), list(weights.values()))
        document: Document = prompt.problem.meta["document"]
        bad = spoiled(document, kind, rng)
        if bad is not None:
            texts = (write_answer(document, paragraphs, cfg.prompt) for paragraphs in (document.gold.paragraphs, bad))
            chosen, rejected = ((*text_ids(text, processor), *end) for text in texts)
            pairs.append(PreferredIds(place, kind, chosen, rejected))
    return pairs


def spoiled(document: Document, kind: PairKind, rng: random.Random) -> list[Paragraph] | None:
    """The reference with one fault of a kind; None where there is no place for it."""
    paragraphs = list(document.gold.paragraphs)
    with_figures = [place for place, paragraph in enumerate(paragraphs) if paragraph.image != NO_FIGURE]
    match kind:
        case "similar":
            similar = document.gold.similar
            places = [place for place in with_figures if similar.get(paragraphs[place].image)]
            return _refer(document, places, lambda paragraph: rng.choice(similar[paragraph.image]), rng)
        case "exchanged":
            if len(with_figures) < 2:
                return None
            a, b = rng.sample(with_figures, 2)
            first, second = paragraphs[a].image, paragraphs[b].image
            paragraphs[a] = with_figure(paragraphs[a], document, second)
            paragraphs[b] = with_figure(paragraphs[b], document, first)
            return paragraphs if first != second else None
        case "none":
            idx = list(document.gold.figures)
            places = list(range(len(paragraphs))) if idx else with_figures
            return _refer(document, places, lambda p: rng.choice(idx) if p.image == NO_FIGURE else NO_FIGURE, rng)
        case "number":
            return _rewrite(paragraphs, lambda text: _other_number(text, rng), rng)
        case "dropped":
            return _rewrite(paragraphs, lambda text: "", rng)
        case _:
            raise ValueError(f"{kind} is no kind of fault")


def shares(pairs: Sequence[PreferredIds]) -> dict[str, dict[str, float]]:
    """Number and share of the pairs of each kind, and by how many tokens their winners are longer, in the mean."""
    kinds = sorted({pair.kind for pair in pairs})
    longer = {kind: [len(p.chosen) - len(p.rejected) for p in pairs if p.kind == kind] for kind in kinds}
    return {
        kind: {"pairs": len(each), "share": len(each) / len(pairs), "longer": fmean(each)}
        for kind, each in longer.items()
    }


def row(index: int, prompt: Prompt, ids: tuple[int, ...]) -> Row:
    """One side of a pair, or an answer to learn by itself."""
    return Row(index, prompt.ids, ids, pictures=prompt.pictures)


def gold_rows(cfg: Config, prompts: Sequence[Prompt], processor: Processor) -> list[Row]:
    """The references of the papers that pairs are made of, as rows."""
    end = special_ids(END, processor)
    rows = []
    for place, prompt in enumerate(prompts):
        document: Document = prompt.problem.meta["document"]
        text = write_answer(document, document.gold.paragraphs, cfg.prompt)
        rows.append(row(place, prompt, (*text_ids(text, processor), *end)))
    return rows


def _refer(document: Document, places: Sequence[int], pick: Any, rng: random.Random) -> list[Paragraph] | None:
    """One of the paragraphs at ``places`` with the figure that ``pick`` gives it."""
    if not places:
        return None
    paragraphs, place = list(document.gold.paragraphs), rng.choice(places)
    paragraphs[place] = with_figure(paragraphs[place], document, pick(paragraphs[place]))
    return paragraphs


def _rewrite(paragraphs: list[Paragraph], change: Any, rng: random.Random) -> list[Paragraph] | None:
    """One key point that stands word by word in its paragraph becomes what ``change`` makes of it; None where none
    does, or nothing changes."""
    said = [
        (place, point)
        for place, paragraph in enumerate(paragraphs)
        for point in paragraph.points
        if point in sentences(paragraph.summary)
    ]
    rng.shuffle(said)
    for place, point in said:
        if (new := change(point)) is not None:
            old = paragraphs[place]
            text = old.summary.replace(point if new else f"{point} ", new, 1)
            if text != old.summary and text.strip():
                return [*paragraphs[:place], replace(old, summary=text), *paragraphs[place + 1 :]]
    return None


def _other_number(text: str, rng: random.Random) -> str | None:
    """The text with another last digit in one of its numbers; None where it has none."""
    places = [
        place for place, letter in enumerate(text) if letter.isdecimal() and not text[place + 1 : place + 2].isdecimal()
    ]
    if not places:
        return None
    place = rng.choice(places)
    digit = rng.choice([d for d in "0123456789" if d != text[place]])
    return text[:place] + digit + text[place + 1 :]
