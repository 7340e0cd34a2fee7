"""A role that learns over the ranks of a pipeline, by a plan for each batch (PipeWeaver, arXiv 2504.14145), and the
batches of supervised training, of which a pipeline plans each while the one before is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stepstack import config
from stepstack.batching.collate import TokenMicroBatch, collate
from stepstack.batching.config import BatchLayout
from stepstack.batching.minibatch import Minibatch
from stepstack.batching.pack import partition
from stepstack.batching.rows import Row, share_of
from stepstack.config import ConfigError
from stepstack.core import hf
from stepstack.core.config import AdamW, TrainableConfig
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.core.types import LossOut
from stepstack.models.chunks import cut, flops_profile, item_sizes
from stepstack.models.lm.policy import Policy
from stepstack.parallel.pipeline import Pipeline, place
from stepstack.planning.pipeline.graph import PipelineBatch, PipelinePlan, PlanError
from stepstack.planning.pipeline.job import choose_cut, plan_batch
from stepstack.planning.pipeline.profile import PipelineProfile
from stepstack.planning.pipeline.timeline import PASSES, Timeline, measured, timeline
from stepstack.planning.pipeline.training import PipelineConfig
from stepstack.report import jsonl

Rows = Callable[[int], list[Row]]  # the whole batch of a step, the same on every process
Sizes = tuple[tuple[tuple[str, tuple[float, ...]], ...], ...]  # of each micro-batch's items, by module
KEPT_PLANS = 64  # of batches of other sizes each
RECORD_EVERY = 50  # updates
SAMPLES = 4  # batches by which the cut is chosen


class PipelinedTrainable(Trainable):
    """A policy whose chunks lie on the ranks of a pipeline. Processes beyond these are replicas, each of which trains
    its share of the rows. A process saves the weights that it has; ``named_weights`` has those of all.
    """

    def __init__(
        self,
        run: Run,
        role: str,
        policy: Policy,
        cfg: TrainableConfig,
        total_updates: int,
        options: PipelineConfig,
        samples: Callable[[Policy], Sequence[PipelineBatch]],
    ):
        """``samples``: batches by which the cut is chosen, where ``options`` do not give it.

        ConfigError for what no pipeline can train (``models.chunks``), and where the run's processes are no multiple of
        the pipeline's ranks."""
        self._check(run, role, cfg, options)
        self.replicas = run.processes // options.ranks
        rank, self.replica = place(run.rank, self.replicas)
        self.part = f"rank-{rank}"
        self.options, self.profile = options, flops_profile(policy)
        if options.profile is not None:
            self.profile = config.read(PipelineProfile, Path(options.profile))
        try:
            self.chosen = choose_cut(self.profile, list(samples(policy)), options.ranks, options)
        except PlanError as error:
            raise ConfigError(f"pipeline: {error}") from None
        whole = {name: (p.shape, p.dtype) for name, p in hf.pretrained(policy).named_parameters()}
        size = sum(p.numel() for p in policy.parameters())
        self.cut = cut(policy, self.chosen.chunks, rank)
        super().__init__(run, role, self.cut.policy, cfg, total_updates)
        self.size = size
        self.pipeline = Pipeline(self.cut, self.replicas, 60.0 * run.config.launch.timeout, run.device)
        held = run.gather([set(self._own())])
        owner = {name: next(process for process, own in enumerate(held) if name in own) for name in whole}
        self.whole = {name: (shape, dtype, owner[name]) for name, (shape, dtype) in whole.items()}
        self._plan_of = lru_cache(KEPT_PLANS)(self._plan)

    def _check(self, run: Run, role: str, cfg: TrainableConfig, options: PipelineConfig) -> None:
        if run.processes % options.ranks:
            raise ConfigError(
                f"pipeline.ranks={options.ranks} does not divide the {run.processes} processes of this run: set "
                "launch.processes_per_node to a multiple of it"
            )
        if run.sharded:
            raise ConfigError(f"launch.file={run.config.launch.file} shards models, and a pipeline cuts them: take ddp")
        if cfg.lora is not None:
            raise ConfigError(f"{role}: a pipeline trains weights, no adapters: leave lora out")
        if isinstance(cfg.optim, AdamW) and cfg.optim.lr_factors:
            raise ConfigError(f"{role}: a rank may hold no weight that a key of lr_factors names: leave lr_factors out")

    def _placed(self, module: nn.Module) -> nn.Module:
        return module.to(self.run.device)

    def _own(self) -> dict[str, nn.Parameter]:
        return dict(hf.pretrained(self.unwrapped).named_parameters())

    # -- updates ---------------------------------------------------------------------------------------------------

    def plan(self, micros: Sequence[TokenMicroBatch]) -> PipelinePlan:
        """The plan of a batch, which depends on the sizes in it alone: it may be asked for ahead, by any thread.
        ConfigError where there is none, such as where one microbatch has more bytes than the cap."""
        sizes = (item_sizes(self.cut.policy, micro).items() for micro in micros)
        return self._plan_of(tuple(tuple((name, tuple(items)) for name, items in one) for one in sizes))

    def _plan(self, sizes: Sizes) -> PipelinePlan:
        try:
            return plan_batch(self.profile, [dict(one) for one in sizes], self.chosen, self.options)
        except PlanError as error:
            raise ConfigError(f"pipeline: {error}") from None

    def _forwards(
        self, micros: Sequence[Any], loss: Callable[[nn.Module, Any], LossOut], denominator: float, learn: bool
    ) -> tuple[dict[str, float], float]:
        """All passes of a batch by its plan. ``micros``: those of this replica, which each of its ranks has."""
        if not learn:
            raise RuntimeError(f"{self.role}: a policy in a pipeline is trained, and measured as a whole model")
        plan = self.plan(micros)
        found = self.pipeline.step(plan, micros, loss, 1.0 / denominator, autocast=self.run.accelerator.autocast)
        self.pipeline.reduce_gradients()
        if self.replica == 0:
            self._record(measured(plan, found.clock))
        means = {name: value if name.endswith("_max") else value / found.count for name, value in found.sums.items()}
        return means | {"loss": found.sums["loss"] / denominator}, found.work

    def _clip(self) -> float:
        norm = self.pipeline.global_norm()
        if self.cfg.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.cfg.clip, torch.tensor(norm))
        return norm

    def _record(self, passes: Timeline) -> None:
        """Log what the ranks waited; now and then, and at the end, keep the times of all passes for the report."""
        self.run.log(**{"pipeline/bubble": passes.bubble})
        if self.run.is_main and (self.updates % RECORD_EVERY == 0 or self.updates + 1 == self.total_updates):
            simulated = timeline(passes.plan, self.profile)
            rows = {"step": self.run.step, "measured": passes.record(), "simulated": simulated.record()}
            jsonl.write_json_atomic(self.run.dir / PASSES, rows)

    def _sum_up(self, *arguments: Any) -> tuple[float, float]:
        raise RuntimeError(f"{self.role}: a policy in a pipeline learns whole batches, whose plan is one")

    # -- weights ---------------------------------------------------------------------------------------------------

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights of the whole model under Hugging Face names, one at a time. Every process must iterate."""
        own = self._own()
        for name, (shape, dtype, owner) in self.whole.items():
            if self.run.rank == owner:
                value = own[name].detach().contiguous()
            else:
                value = torch.empty(shape, dtype=dtype, device=self.run.device)
            if self.run.processes > 1:
                dist.broadcast(value, src=owner)
            yield name, value

    def for_sampling(self, build: Callable[[], nn.Module]) -> nn.Module:
        """A whole model by ``build``, into which ``averaged`` puts the weights."""
        with torch.random.fork_rng():  # the weights that it draws are not of the run
            return build().to(self.run.device).eval()


def trainable_of(
    run: Run,
    role: str,
    policy: Policy,
    cfg: TrainableConfig,
    total_updates: int,
    options: PipelineConfig | None,
    rows: Rows,
    layout: BatchLayout,
) -> Trainable:
    """A role that learns ``rows``, whole on every process, or with ``options`` cut over the ranks of a pipeline."""
    if options is None:
        return run.trainable(role, policy, cfg, total_updates)

    def samples(policy: Policy) -> list[PipelineBatch]:
        replicas = max(1, run.processes // options.ranks)
        batches = (micros_of(rows(step), layout, 0, replicas, "cpu") for step in range(min(SAMPLES, total_updates)))
        return [[item_sizes(policy, micro) for micro in micros] for micros in batches]

    return run.add(PipelinedTrainable(run, role, policy, cfg, total_updates, options, samples))


# -- batches of supervised training ------------------------------------------------------------------------------------


def micros_of(
    rows: list[Row], layout: BatchLayout, replica: int, replicas: int, device: torch.device | str
) -> list[TokenMicroBatch]:
    """Micro-batches of a replica's share of the rows. ValueError where there is not a row for each."""
    if len(rows) < replicas:
        raise ValueError(f"{len(rows)} rows are too few for {replicas} replicas: raise the batch or start fewer")
    return [collate(part, layout.pack, device) for part in partition(share_of(rows, replica, replicas), layout)]


class PlannedBatches:
    """Mini-batches of a pipeline. That of the next step is read and planned by a thread while one is trained."""

    def __init__(self, run: Run, policy: PipelinedTrainable, rows: Rows, layout: BatchLayout, steps: int):
        self.run, self.policy, self.rows, self.layout, self.steps = run, policy, rows, layout, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pipeline-plan")
        self._ahead: dict[int, Future[tuple[Minibatch, PipelinePlan, float]]] = {}

    def __call__(self, step: int) -> Minibatch:
        self._begin(step)
        if step + 1 < self.steps:
            self._begin(step + 1)
        with self.run.timer("plan"):  # seconds that training waits
            minibatch, plan, seconds = self._ahead.pop(step).result()
        self.run.log(**{"pipeline/plan_s": seconds, "pipeline/microbatches": float(plan.graph.microbatches)})
        return minibatch

    def _begin(self, step: int) -> None:
        if step not in self._ahead:
            self._ahead[step] = self._thread.submit(self._make, step)

    def _make(self, step: int) -> tuple[Minibatch, PipelinePlan, float]:
        rows, policy = self.rows(step), self.policy
        micros = micros_of(rows, self.layout, policy.replica, policy.replicas, self.run.device)
        started = time.perf_counter()
        plan = policy.plan(micros)
        seconds = time.perf_counter() - started
        counts = sum(row.weight for row in rows), float(len(rows)), float(len(micros)), float(len(rows))
        return Minibatch(micros, *counts), plan, seconds
