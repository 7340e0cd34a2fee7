"""Log-probabilities of pairs by the model that training starts from: computed once and kept in a file, or by that model
beside the policy."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import track
from torch import nn

from stepstack.batching.config import BatchLayout
from stepstack.batching.leaks import refuse_leaks
from stepstack.batching.pairs import Pair, PairMicroBatch, pair_minibatch
from stepstack.batching.rows import Row
from stepstack.config import ConfigError
from stepstack.core import weights
from stepstack.core.adapters import without_adapters
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.records import Picture
from stepstack.report import jsonl
from stepstack.tuning.config import DpoStage
from stepstack.tuning.preference import PairScores

Reference = Callable[[PairMicroBatch], PairScores]

PAIRS_AT_ONCE = 256  # pairs over all processes between two movements of the bar


def cached(run: Run, policy: Trainable, pairs: Sequence[Pair], layout: BatchLayout, file: Path) -> list[Pair]:
    """The pairs with what ``policy`` says of them now, before its first update, from ``file`` where that was written
    for the same weights, rows and pictures. Every process must call it, with the same pairs.

    ConfigError for a file that was written for others, naming which, and for a model that cannot be packed.
    """
    refuse_leaks(run, policy, layout)
    key = {
        "weights": weights.digest(policy.named_weights()),
        "rows": rows_digest(pairs),
        "pictures": pictures_digest(pairs),
    }
    record = run.gather([jsonl.read_json(file, "key", "pairs") if file.is_file() else None] if run.is_main else [])[0]
    if record is None:
        values = _computed(run, policy, pairs, layout)
        if run.is_main:
            jsonl.write_json_atomic(file, {"key": key, "pairs": values})
        run.accelerator.wait_for_everyone()
    elif changed := [name for name in key if record["key"].get(name) != key[name]]:
        raise ConfigError(
            f"{file} holds the reference's log-probabilities for other {' and '.join(changed)}: delete it, or give "
            "this run another name (name=...)"
        )
    else:
        values = record["pairs"]
    return [replace(pair, reference=(won, lost)) for pair, (won, lost) in zip(pairs, values, strict=True)]


def start_copy(run: Run, module: nn.Module, cfg: DpoStage) -> nn.Module | None:
    """A frozen copy of a module that is not trained yet, where ``cfg`` wants the start model beside the policy. None
    where it does not, and where the policy without its adapters is the start model."""
    return run.frozen(copy.deepcopy(module)) if cfg.needs_copy else None


def with_reference(
    run: Run,
    policy: Trainable,
    pairs: Sequence[Pair],
    cfg: DpoStage,
    layout: BatchLayout,
    start: nn.Module | None,
) -> tuple[list[Pair], Reference | None]:
    """(pairs, source of the reference's scores of them), None for a loss without reference. ``start`` is what
    ``start_copy`` returned before ``policy`` was made. Every process must call it, before the first update."""
    if not cfg.loss.needs_reference:
        return list(pairs), None
    if cfg.reference == "cached":
        return cached(run, policy, pairs, layout, run.dir / "reference.json"), PairMicroBatch.reference

    @torch.no_grad()
    def scores(micro: PairMicroBatch) -> PairScores:
        if start is not None:
            return micro.scores(start(**micro.tokens.inputs())[0])
        with without_adapters(policy.unwrapped):
            return micro.scores(policy.module(**micro.tokens.inputs())[0])

    return list(pairs), scores


def _computed(run: Run, policy: Trainable, pairs: Sequence[Pair], layout: BatchLayout) -> list[tuple[float, float]]:
    values: list[tuple[float, float]] = [(0.0, 0.0)] * len(pairs)
    numbered = [replace(pair, index=place) for place, pair in enumerate(pairs)]
    chunks = [numbered[start : start + PAIRS_AT_ONCE] for start in range(0, len(pairs), PAIRS_AT_ONCE)]
    if len(chunks) > 1 and len(chunks[-1]) < run.processes:
        chunks[-2:] = [chunks[-2] + chunks[-1]]
    for chunk in track(chunks, "reference", transient=True, disable=not run.is_main):
        local = []
        for micro in pair_minibatch(run, chunk, layout).micros:
            with torch.no_grad(), run.accelerator.autocast():
                scores = micro.scores(policy.module(**micro.tokens.inputs())[0])
            if not micro.blank:
                both = zip(scores.chosen_B.tolist(), scores.rejected_B.tolist(), strict=True)
                local += list(zip((pair.index for pair in micro.pairs), both, strict=True))
        for index, value in run.gather(local):
            values[index] = value
    return values


def rows_digest(pairs: Sequence[Pair]) -> str:
    """Hash of tokens and weights."""
    total = hashlib.sha256()
    for pair in pairs:
        total.update(repr([_content(row) for row in (pair.chosen, pair.rejected)]).encode())
    return total.hexdigest()


def pictures_digest(pairs: Sequence[Pair]) -> str:
    """Hash of the pixels of all pictures, in order; each different picture is read once."""
    seen: dict[Picture, str] = {}
    total = hashlib.sha256()
    for pair in pairs:
        for picture in (*pair.chosen.pictures, *pair.rejected.pictures):
            if picture not in seen:
                image = picture.image()
                pixels = hashlib.sha256(image.tobytes())
                seen[picture] = f"{image.mode} {image.size} {pixels.hexdigest()}"
            total.update(seen[picture].encode())
    return total.hexdigest()


def _content(row: Row) -> tuple[object, ...]:
    return row.prompt_ids, row.ids, row.weights
