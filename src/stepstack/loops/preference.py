"""Preference tuning: of two answers to a prompt, or two clips of a condition, the better one becomes more likely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from stepstack.batching.pairs import PairMicroBatch, PairMinibatch
from stepstack.batching.reference import Reference
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.core.types import LossOut
from stepstack.tuning.config import PreferenceLoss
from stepstack.tuning.preference import figures, preference_loss

Loss = Callable[[nn.Module, Any], LossOut]

# Greatest log-ratio to its reference of a policy that has not been updated: rounding, no more. At the usual beta of 0.1
# a reward of 1e-5.
MAX_START_LOG_RATIO = {"no": 1e-4, "bf16": 5.0}


def train(
    run: Run,
    *,
    policy: Trainable,
    minibatch: Callable[[int], Any],
    loss: Callable[[Any], Loss],
    steps: int,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    together: AbstractContextManager | None = None,
) -> None:
    """``minibatch(step)`` gives the ``micros`` of a step and the number of its ``pairs`` over all processes; ``loss``
    gives the loss of its micro-batches. Forwards run inside of ``together``."""
    run.refuse_dropout("would make the policy differ from its reference before it has learned anything")
    for step in run.steps(steps, evaluate):
        batch = minibatch(step)
        with run.timer(policy.role), together or nullcontext():
            if step == 0:
                check_start(run, policy, policy.measure(batch.micros, loss(batch), batch.pairs))
            metrics = policy.update(batch.micros, loss(batch), batch.pairs)
        tokens = run.sum(torch.tensor(float(sum(micro.work for micro in batch.micros if not micro.blank))))
        run.log(**metrics, loss=metrics[f"{policy.role}/loss"], tokens=float(tokens))


def check_start(run: Run, policy: Trainable, metrics: Mapping[str, float]) -> None:
    """ValueError where the policy differs from its reference before its first update: every reward must be 0, and so
    the loss of DPO ln 2."""
    largest = metrics.get(f"{policy.role}/log_ratio_abs_max", 0.0)
    limit = MAX_START_LOG_RATIO[run.accelerator.mixed_precision]
    if not largest <= limit:
        raise ValueError(
            f"before the first update the policy's log-ratio to its reference is {largest:.3g}, which must be 0 (at "
            f"most {limit:g}): the reference is not the model that training starts from: give both the same"
        )


def token_loss(cfg: PreferenceLoss, batch: PairMinibatch, reference: Reference | None) -> Loss:
    """Loss of pairs of answers, summed over pairs; the winners' likelihood is a mean over their tokens in the whole
    batch."""

    def loss(module: nn.Module, micro: PairMicroBatch) -> LossOut:
        before = None if reference is None else reference(micro)
        logp_N, entropy_N = module(**micro.tokens.inputs())
        scores = micro.scores(logp_N)
        total = preference_loss(cfg, scores, before).sum()
        if cfg.sft:
            total = total - cfg.sft * batch.pairs / batch.tokens * scores.chosen_B.sum()
        metrics = figures(cfg, scores, before) | {"entropy": entropy_N.sum() / len(logp_N) * micro.count}
        return LossOut(total=total, count=micro.count, work=micro.work, metrics=metrics)

    return loss
