"""Handle of DSV in a model: two stages, the optimizer of the predictors, dispatch, metrics and state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stepstack.config import ConfigError, difference, to_dict
from stepstack.models.video.dsv import profiler
from stepstack.models.video.dsv.config import DsvConfig, Fixed, Measured
from stepstack.models.video.dsv.core import Call, DsvAttention
from stepstack.models.video.dsv.layout import CubeLayout
from stepstack.models.video.dsv.observe import HEAD_METRICS, Observation, sample_blocks
from stepstack.models.video.dsv.speed import SpeedProfile
from stepstack.models.video.grid import Grid


class Dsv:
    """Handle of a model's DSV attentions.

    Call ``step`` after each step of the model's optimizer, log ``metrics``, and save ``state_dict`` beside the model's
    own, which carries the predictors. In stage 1 attention is dense and the predictors learn. It ends when their mean
    loss is under ``config.switch``. In stage 2 attentions whose mean sparsity reaches the dispatch's threshold are
    sparse (arXiv 2502.07590, section 5).
    """

    def __init__(self, attentions: Sequence[DsvAttention], config: DsvConfig, speed: SpeedProfile | None):
        self.attentions, self.config, self.speed = attentions, config, speed
        self.stage, self.steps, self.skipped = 1, 0, 0
        self.grid: Grid | None = None  # grid of the newest call
        self.losses: list[Tensor | None] = [None] * len(attentions)  # smoothed
        self.observed_metrics: list[Tensor | None] = [None] * len(attentions)  # HEAD_METRICS by head
        self.planned: list[list[float]] | None = None  # sparsity by head that the context plan is based on
        self.generator = torch.Generator().manual_seed(config.seed)
        weights = [w for a in attentions for w in (a.predictor.query, a.predictor.key)]
        self.optimizer = torch.optim.Adam(weights, lr=config.lr)
        self.layouts: dict[tuple[Grid, torch.device], CubeLayout] = {}

    def call(self, grid: Grid, device: torch.device, training: bool) -> Call:
        """Call that the attentions of one forward pass share. ``training``: the model is in training and gradients are
        on."""
        layout, self.grid = self.layout(grid, device), grid
        every = self.config.every if self.stage == 1 else self.config.every_sparse
        due = training and self.steps % every == 0
        sampled = sample_blocks(layout.blocks, self.config.sampling, self.generator) if due else None
        return Call(layout, sampled, self.threshold(grid))

    def layout(self, grid: Grid, device: torch.device) -> CubeLayout:
        """Cubes of a video's size, built once."""
        if (grid, device) not in self.layouts:
            with torch.inference_mode(False):  # autograd could not save an inference tensor later
                self.layouts[grid, device] = CubeLayout.build(grid, self.config.cube, self.config.rank, device)
        return self.layouts[grid, device]

    def threshold(self, grid: Grid) -> float | None:
        """Sparsity from which on an attention is sparse, None in stage 1.

        A profile without the grid is refused in both stages: at the first step, not days later.
        """
        dispatch = self.config.dispatch
        least = dispatch.sparsity if isinstance(dispatch, Fixed) else self.measured.threshold(grid)
        return least if self.stage == 2 else None

    @property
    def measured(self) -> SpeedProfile:
        assert self.speed is not None
        return self.speed

    def step(self) -> None:
        """Train the predictors on this step's observations, update the profile, and end stage 1 when due.

        With torch.distributed running, gradients and profile are averaged over its processes. Observations of a pass
        with NaN or infinities are dropped and counted, because a trainer skips that step of the model too.
        """
        observed = [(i, a.observed) for i, a in enumerate(self.attentions) if a.observed is not None]
        for attention in self.attentions:
            attention.observed = None
        if observed and average([observation for _, observation in observed]):
            for i, observation in observed:
                self.learn(i, observation)
            self.optimizer.step()
            self.optimizer.zero_grad()
        elif observed:
            self.skipped += 1
        self.steps += 1
        if self.stage == 1 and self.ready():
            self.stage = 2
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr_sparse

    def learn(self, i: int, observation: Observation) -> None:
        """Set the gradients of the predictors, and update the moving averages of sparsity and loss."""
        attention, config = self.attentions[i], self.config
        for weight, gradient in zip(
            (attention.predictor.query, attention.predictor.key), observation.gradients, strict=True
        ):
            weight.grad = gradient.to(weight.dtype)
        newest = self.observed_metrics[i] = observation.metrics_by_head.cpu()
        self.losses[i] = profiler.smooth(self.losses[i], observation.loss.cpu(), config.ema)
        attention.sparsity_H = profiler.smooth(attention.sparsity_H, newest[HEAD_METRICS.index("sparsity")], config.ema)

    def ready(self) -> bool:
        """Whether stage 1 may end."""
        losses = [loss for loss in self.losses if loss is not None]
        if self.steps < self.config.warmup or len(losses) < len(self.losses):
            return False
        return self.config.selector == "pooled" or float(torch.stack(losses).mean()) < self.config.switch

    def sparse(self) -> list[bool]:
        """Sparsity flag of each attention at the newest grid."""
        threshold = None if self.grid is None else self.threshold(self.grid)
        return [a.is_sparse(threshold) for a in self.attentions]

    def metrics(self) -> dict[str, float]:
        """Metrics for ``run.log``: the stage, and means by block and over all. Empty until something was observed."""
        if any(metrics_by_head is None for metrics_by_head in self.observed_metrics):
            return {}
        names = ("loss", *HEAD_METRICS, "sparse")
        table = [
            [float(loss), *metrics_by_head.mean(-1).tolist(), float(sparse)]  # type: ignore[arg-type, union-attr]
            for loss, metrics_by_head, sparse in zip(self.losses, self.observed_metrics, self.sparse(), strict=True)
        ]
        values = {"dsv/stage": float(self.stage), "dsv/skipped": float(self.skipped)}
        for name, column in zip(names, zip(*table, strict=True), strict=True):
            values[f"dsv/{name}"] = sum(column) / len(column)
            values |= {f"dsv/{name}/{i:02d}": value for i, value in enumerate(column)}
        return values

    def maps(self) -> dict[str, list[list[float]]]:
        """Matrices [attentions][heads] of the smoothed sparsity and of the newest observation, for
        ``Report.heatmaps``."""
        if any(metrics_by_head is None for metrics_by_head in self.observed_metrics):
            return {}
        newest = torch.stack(
            [metrics_by_head for metrics_by_head in self.observed_metrics if metrics_by_head is not None]
        )
        smoothed = torch.stack([a.sparsity_H for a in self.attentions if a.sparsity_H is not None])
        return {"smoothed sparsity": smoothed.tolist()} | {
            name: newest[:, m].tolist() for m, name in enumerate(HEAD_METRICS)
        }

    def state_dict(self) -> dict[str, Any]:
        """State without the predictors' weights. Take it between steps."""
        return {
            "config": to_dict(self.config),
            "stage": self.stage,
            "steps": self.steps,
            "skipped": self.skipped,
            "grid": self.grid,
            "losses": self.losses,
            "seen": self.observed_metrics,
            "sparsity": [a.sparsity_H for a in self.attentions],
            "planned": self.planned,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "speed": None if self.speed is None else asdict(self.speed),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``, with the speed profile that the run began with.

        ConfigError for another configuration or number of attentions.
        """
        differ = difference(state["config"], to_dict(self.config))
        if differ or len(state["seen"]) != len(self.attentions):
            count = f"attentions: {len(state['seen'])} -> {len(self.attentions)}"
            raise ConfigError(
                f"the saved state of DSV is of another run ({'; '.join([*differ, count])}): use that run's config"
            )
        self.stage, self.steps, self.skipped = state["stage"], state["steps"], state["skipped"]
        self.grid, self.planned = state["grid"], state["planned"]
        self.losses, self.observed_metrics = list(state["losses"]), list(state["seen"])
        self.speed = None if state["speed"] is None else SpeedProfile.parse(state["speed"])
        for attention, sparsity_H in zip(self.attentions, state["sparsity"], strict=True):
            attention.sparsity_H, attention.speed, attention.checked = sparsity_H, self.speed, None
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])

    def sampling_state(self) -> dict[str, Any]:
        """Plain JSON of the state that attention depends on without training, beside the weights and the config."""
        sparsity = [None if a.sparsity_H is None else a.sparsity_H.tolist() for a in self.attentions]
        return {"stage": self.stage, "sparsity": sparsity}

    def load_sampling_state(self, state: dict[str, Any]) -> None:
        """Restore attention from a ``sampling_state``."""
        self.stage = state["stage"]
        for attention, sparsity in zip(self.attentions, state["sparsity"], strict=True):
            attention.sparsity_H = None if sparsity is None else torch.tensor(sparsity)


def average(observed: list[Observation]) -> bool:
    """Replace sums over forward passes by means over them and over all processes, in one exchange.

    Returns whether all values are finite.
    """
    tensors = [
        t for observation in observed for t in (observation.loss, observation.metrics_by_head, *observation.gradients)
    ]
    counts = [observation.count for observation in observed for _ in range(2 + len(observation.gradients))]
    flat = torch.cat([t.flatten() / count for t, count in zip(tensors, counts, strict=True)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
    return bool(flat.isfinite().all())


def load_speed_profile(config: DsvConfig) -> SpeedProfile | None:
    return SpeedProfile.load(Path(config.dispatch.file)) if isinstance(config.dispatch, Measured) else None
