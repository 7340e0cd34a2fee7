"""Supervised fine-tuning: next-token loss on the learned tokens of rows, alone or beside a teacher's distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from stepstack.batching.collate import TokenMicroBatch
from stepstack.batching.config import BatchLayout
from stepstack.batching.leaks import refuse_leaks
from stepstack.batching.minibatch import Minibatch, minibatches
from stepstack.batching.pipelined import PipelinedTrainable, PlannedBatches
from stepstack.batching.rows import Batch, Row, share_of
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.core.types import LossOut
from stepstack.tuning.config import Distillation
from stepstack.tuning.distillation import distillation_loss

Loss = Callable[[nn.Module, TokenMicroBatch], LossOut]


def likelihood(module: nn.Module, micro: TokenMicroBatch) -> LossOut:
    """Negative log-likelihood of the learned tokens, summed by their weights."""
    logp_N, entropy_N = module(**micro.inputs())
    return LossOut(
        total=-(micro.weight_N * logp_N).sum(), count=micro.count, work=micro.work, metrics={"entropy": entropy_N.sum()}
    )


def distilled(cfg: Distillation, teacher: nn.Module) -> Loss:
    """Loss of a ``models.lm.distilled.StudentPolicy`` beside its teacher, a ``TeacherPolicy`` that reads the same
    micro-batch without gradients. Metrics have the two terms apart, unweighted."""

    def loss(module: nn.Module, micro: TokenMicroBatch) -> LossOut:
        with torch.no_grad():
            teacher_NV = teacher(**micro.inputs())
        logp_N, entropy_N, divergence_N = module(**micro.inputs(), teacher_NV=teacher_NV)
        total = (micro.weight_N * distillation_loss(cfg, logp_N, divergence_N)).sum()
        metrics = {"entropy": entropy_N.sum(), "nll": -logp_N.sum(), "divergence": divergence_N.sum()}
        return LossOut(total=total, count=micro.count, work=micro.work, metrics=metrics)

    return loss


def train(
    run: Run,
    *,
    policy: Trainable,
    rows: Callable[[int], list[Row]],
    steps: int,
    layout: BatchLayout,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    loss: Loss = likelihood,
) -> None:
    """``rows(step)`` gives the whole batch of a step, the same on every process; each takes its part. A policy in a
    pipeline (``batching.pipelined``) learns by a plan for each batch."""
    batches = batches_of(run, policy, rows, layout, steps)
    for step in run.steps(steps, evaluate):
        minibatch = batches(step)
        with run.timer("policy"):
            metrics = policy.update(minibatch.micros, loss, minibatch.tokens)
        run.log(**metrics, loss=metrics["policy/loss"], tokens=minibatch.tokens)


def batches_of(
    run: Run, policy: Trainable, rows: Callable[[int], list[Row]], layout: BatchLayout, steps: int
) -> Callable[[int], Minibatch]:
    """The micro-batches of this process by step. ConfigError for packed rows that would see each other."""
    if isinstance(policy, PipelinedTrainable):
        return PlannedBatches(run, policy, rows, layout, steps)
    refuse_leaks(run, policy, layout)
    return lambda step: minibatches(run, local_batch(run, rows(step), seed=step), 1, layout)[0]


def local_batch(run: Run, rows: list[Row], seed: int) -> Batch:
    """This process's rows, balanced by length."""
    return Batch(share_of(rows, run.rank, run.processes), len(rows), seed)
