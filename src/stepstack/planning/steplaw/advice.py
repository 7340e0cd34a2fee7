"""Advice for a training run: Step Law's learning rate, batch and schedule, their tolerance, and the rival laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stepstack.planning.steplaw import laws
from stepstack.planning.steplaw.laws import LawAnswer, LawInputs

# Factors by which the learning rate, and the batch, may each leave a grid's optimum until the loss has grown by 0.1 %:
# medians over the 17 released dense grids, docs/steplaw.md.
PLATEAU = 1e-3
PLATEAU_LR, PLATEAU_BATCH = 1.484, 1.497


@dataclass(frozen=True, slots=True)
class Advice:
    """Settings of a training run: ``batch`` in tokens, and ``sequences``, the batch that can be run.

    ``sequences`` is a multiple of ``multiple``. Within ``lr_range`` and ``batch_range`` the loss stays under +0.1 %.
    ``others``: every law, Step Law first.
    """

    at: LawInputs
    sequence: int
    multiple: int
    lr: float
    batch: float
    sequences: int
    updates: int
    warmup: int
    final_lr: float
    lr_range: tuple[float, float]
    batch_range: tuple[float, float]
    warnings: list[str]
    others: list[LawAnswer]


def advise(at: LawInputs, sequence: int, multiple: int = 1) -> Advice:
    """Advice for a model size, token count and sequence length. ValueError for a number that is not above 0.

    ``multiple``: least number of sequences in a step, which is data-parallel processes x micro-batch.
    """
    for name, value in (("params", at.params), ("tokens", at.tokens), ("sequence", sequence), ("multiple", multiple)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} = {value} must be above 0")
    lr, batch = map(float, laws.STEP(at.params, at.tokens))
    sequences = max(1, round(batch / sequence / multiple)) * multiple
    updates = int(at.tokens // (sequences * sequence))
    warnings = laws.warnings(at.params, at.tokens)
    if updates <= laws.WARMUP:
        warnings.append(f"{updates} updates are no more than the warm-up of {laws.WARMUP}: the peak is never reached")
    if not batch / PLATEAU_BATCH <= sequences * sequence <= batch * PLATEAU_BATCH:
        warnings.append(
            f"{sequences} sequences of {sequence} tokens are off the plateau of the batch: {batch:.4g} tokens"
        )
    return Advice(
        at=at,
        sequence=sequence,
        multiple=multiple,
        lr=lr,
        batch=batch,
        sequences=sequences,
        updates=updates,
        warmup=laws.WARMUP,
        final_lr=laws.FINAL_LR,
        lr_range=(lr / PLATEAU_LR, lr * PLATEAU_LR),
        batch_range=(batch / PLATEAU_BATCH, batch * PLATEAU_BATCH),
        warnings=warnings,
        others=laws.answers(at),
    )


def rows(advice: Advice) -> list[tuple[str, str]]:
    """Rows of the table that the command prints."""
    low, high = advice.lr_range
    small, large = advice.batch_range
    return [
        ("parameters N, non-embedding", f"{advice.at.params:.6g}"),
        ("tokens D", f"{advice.at.tokens:.6g}"),
        ("peak learning rate", f"{advice.lr:.4g}"),
        ("  loss within +0.1 %", f"{low:.3g} to {high:.3g}"),
        ("batch, tokens", f"{advice.batch:,.0f}"),
        ("  loss within +0.1 %", f"{small:,.0f} to {large:,.0f}"),
        ("batch, sequences", f"{advice.sequences} of {advice.sequence} tokens, a multiple of {advice.multiple}"),
        ("updates", f"{advice.updates:,}"),
        ("schedule", f"{advice.warmup} updates of warm-up, cosine to {advice.final_lr:g}"),
    ]


def law_rows(answers: Sequence[LawAnswer]) -> list[tuple[str, str, str, str]]:
    """Rows of the table of laws: name, learning rate, batch, remark."""
    return [
        (a.law, "-" if a.lr is None else f"{a.lr:.4g}", "-" if a.batch is None else f"{a.batch:,.0f}", a.why)
        for a in answers
    ]
