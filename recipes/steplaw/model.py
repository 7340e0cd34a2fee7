"""Training of one point of the sweep: a language model from scratch at one learning rate and batch size, and its
loss."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from recipes.steplaw.config import Cell, Config, Point
from recipes.steplaw.data import HELD_OUT, TRAIN, token_rows
from stepstack.batching.minibatch import minibatches
from stepstack.batching.rows import Row
from stepstack.config import Save
from stepstack.core.config import AdamW, TrainableConfig
from stepstack.core.run import Run, stage
from stepstack.core.trainable import NonFiniteGradient, Trainable
from stepstack.loops import supervised
from stepstack.models.lm.policy import Policy
from stepstack.report import jsonl


def measure(run: Run[Config], point: Point) -> dict[str, float]:
    """Loss and CPU seconds of a point, trained in its own folder or read from there. A loss of inf is a run that
    diverged."""
    file = run.dir / "points" / point.name / "result.json"
    if file.is_file():
        return jsonl.read_json(file)
    inner = stage(
        run, f"points/{point.name}", visible=False, eval_every=0, trackers=(), save=Save(every=run.config.save.every)
    )
    result = {"loss": _train(inner, point), "cpu_s": _cpu_seconds(inner)}
    if run.is_main:
        jsonl.write_json_atomic(file, result)
    run.accelerator.wait_for_everyone()
    inner.finish()
    inner.accelerator.free_memory()  # the next point builds a model of its own
    return result


def _train(run: Run[Config], point: Point) -> float:
    cfg = run.config
    run.reseed()  # every point starts from the same weights of its shape
    lm = run.load(lambda: build(cfg, point.cell), lambda: build(cfg, point.cell))
    policy = run.trainable("policy", Policy(lm), TrainableConfig(optim=optim(cfg, point), clip=cfg.clip), point.steps)
    try:
        supervised.train(
            run,
            policy=policy,
            rows=lambda step: batch(cfg, TRAIN, step * point.batch, point.batch),
            steps=point.steps,
            layout=cfg.layout,
        )
    except NonFiniteGradient:
        return float("inf")
    loss = held_out_loss(run, policy)
    return loss if math.isfinite(loss) else float("inf")


def build(cfg: Config, cell: Cell) -> PreTrainedModel:
    fields = cell.fields(cfg.data.vocab) | {"max_position_embeddings": cfg.sequence, "initializer_range": cfg.spread}
    fields.pop("model_type")
    return LlamaForCausalLM(LlamaConfig(**fields, tie_word_embeddings=False, pad_token_id=None, use_cache=False))


def optim(cfg: Config, point: Point) -> AdamW:
    """Optimizer of a point. Warm-up is at most a tenth of the run, and the final learning rate is the same for every
    peak."""
    warmup = min(cfg.optim.schedule.warmup, point.steps // 10)
    schedule = replace(cfg.optim.schedule, warmup=warmup, final=min(1.0, cfg.final_lr / point.lr))
    return replace(cfg.optim, lr=point.lr, schedule=schedule)


def batch(cfg: Config, stream: int, first: int, count: int) -> list[Row]:
    ids_of_rows = token_rows(cfg, stream, first, count).tolist()
    return [Row(i, (ids[0],), tuple(ids[1:])) for i, ids in enumerate(ids_of_rows)]


@torch.no_grad()
def held_out_loss(run: Run[Config], policy: Trainable) -> float:
    """Mean negative log-likelihood a token, in nats, of the held-out rows, which are the same for every point."""
    share = supervised.local_batch(run, batch(run.config, HELD_OUT, 0, run.config.held_out_rows), seed=0)
    [minibatch] = minibatches(run, share, 1, run.config.layout)
    total = torch.zeros((), dtype=torch.float64)
    for micro in minibatch.micros:
        with run.accelerator.autocast():
            loss = supervised.likelihood(policy.module, micro).total
        total += 0.0 if micro.blank else float(loss)
    return float(run.sum(total) / minibatch.tokens)


def _cpu_seconds(run: Run[Config]) -> float:
    return sum(row["cpu_s"] for row in jsonl.read(run.metrics_file))
