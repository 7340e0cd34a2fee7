"""One role that learns: a module, its optimizers, its own count of updates."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stepstack.config import ConfigError
from stepstack.core import hf
from stepstack.core.config import Lora, TrainableConfig
from stepstack.core.ema import Ema
from stepstack.core.optim import optimizers, resolve_optimizer

if TYPE_CHECKING:
    from stepstack.core.run import Run
    from stepstack.core.types import LossOut


class NonFiniteGradient(FloatingPointError):
    """Too many updates in a row had a gradient that is NaN or infinite."""


class Trainable:
    """Made by ``Run.trainable``. ``updates`` counts optimizer steps and drives the schedule."""

    def __init__(self, run: Run, role: str, module: nn.Module, cfg: TrainableConfig, total_updates: int):
        self.run, self.role, self.cfg, self.total_updates = run, role, cfg, total_updates
        self.updates = self.skipped = self.skipped_in_a_row = 0
        body = hf.pretrained(module)
        if cfg.lora is not None:
            add_lora(body, cfg.lora)
        if cfg.gradient_checkpointing:
            hf.enable_gradient_checkpointing(body)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.size = sum(p.numel() for p in module.parameters())
        accelerator = run.accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED and run.trainables:
            raise ConfigError(
                f"role {role!r}: DeepSpeed trains one model per process, and {next(iter(run.trainables))!r} is one. "
                "Use launch.file=fsdp2, or an advantage without critic (advantage.type=grpo)"
            )
        self.optim = resolve_optimizer(cfg.optim, run.config.scale)
        unprepared = optimizers(module, self.optim)
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            self._fit_deepspeed(unprepared)
        self.module, *self.optimizers = accelerator.prepare(module.train(), *unprepared)
        # FSDP replaces the parameters by sharded ones.
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.ema = Ema(self.parameters, cfg.ema) if cfg.ema else None

    def _fit_deepspeed(self, unprepared: list[torch.optim.Optimizer]) -> None:
        """DeepSpeed clips by itself, takes one optimizer, and wants a batch size where there is no data loader."""
        if len(unprepared) > 1:
            raise ConfigError(f"{self.role}: DeepSpeed takes one optimizer, optim.type=muon is two: use adamw")
        if self.cfg.ema:
            raise ConfigError(f"{self.role}: DeepSpeed keeps no moving average: set ema=0, or launch.file=fsdp2")
        settings = self.run.accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = 1
        settings["gradient_clipping"] = self.cfg.clip

    def update(
        self, micros: Sequence[Any], loss: Callable[[nn.Module, Any], LossOut], denominator: float
    ) -> dict[str, float]:
        """One optimizer step. ``loss(module, micro)`` returns sums; their total over all micro-batches and processes is
        divided by ``denominator``. Metrics come back as global means over what the loss counts, names ``<role>/...``.

        A non-finite gradient skips the step, is counted, and raises NonFiniteGradient when ``max_skipped`` follow each
        other; the weights then are still the last good ones.
        """
        accelerator, started = self.run.accelerator, time.perf_counter()
        sums: dict[str, Tensor] = {}
        count = work = 0.0
        for i, micro in enumerate(micros):
            last = i == len(micros) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module):
                with accelerator.autocast():
                    out = loss(self.module, micro)
                weight = 0.0 if micro.blank else accelerator.num_processes / denominator
                # Not multiplied by 0 for a blank: 0 x inf is NaN.
                total = torch.where(torch.tensor(micro.blank, device=out.total.device), 0.0, out.total) * weight
                accelerator.backward(total)
            new = {"loss": out.total, **out.metrics}
            _accumulate(sums, {k: torch.zeros_like(v) for k, v in new.items()} if micro.blank else new)
            if not micro.blank:
                count, work = count + out.count, work + out.work
        metrics, work = self._reduce(sums, count, work, denominator)
        metrics |= self._step()
        self.run.count_work(6 * self.size * work, time.perf_counter() - started)
        return {f"{self.role}/{name}": value for name, value in metrics.items()}

    def _reduce(
        self, sums: dict[str, Tensor], count: float, work: float, denominator: float
    ) -> tuple[dict[str, float], float]:
        """(means over what all processes counted, their work); maxima stay maxima; the loss has its own denominator."""
        means = sorted(name for name in sums if not name.endswith("_max"))
        peaks = sorted(name for name in sums if name.endswith("_max"))
        counts = [torch.tensor(value, dtype=torch.float64) for value in (count, work)]
        *totals, count, work = self.run.sum(torch.stack([*(sums[n].double().cpu() for n in means), *counts])).tolist()
        values = dict(zip(means, totals, strict=True))
        summed = values.pop("loss")
        out = {name: value / count for name, value in values.items()}
        if peaks:
            out |= dict(
                zip(peaks, self.run.max(torch.stack([sums[n].double().cpu() for n in peaks])).tolist(), strict=True)
            )
        return {"loss": summed / denominator, **out}, work

    def _step(self) -> dict[str, float]:
        factor = self.optim.schedule.factor(self.updates, self.total_updates)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        norm = self.run.accelerator.clip_grad_norm_(self.parameters, self.cfg.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        size = 0.0 if norm is None else float(norm)  # DeepSpeed clips by itself and returns None
        if math.isfinite(size):
            for optimizer in self.optimizers:
                optimizer.step()
            self.updates += 1
            self.skipped_in_a_row = 0
            if self.ema is not None:
                self.ema.update(self.updates)
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.skipped_in_a_row >= max(1, self.run.config.max_skipped):
            raise NonFiniteGradient(
                f"{self.role}: {self.skipped_in_a_row} updates in a row had a non-finite gradient (a NaN loss). "
                f"The weights are those of update {self.updates}; checkpoints are in {self.run.checkpoints}"
            )
        return {"grad_norm": size}

    def refuse_dropout(self, why: str) -> None:
        """ConfigError with the reason ``why`` if anything of it drops out in training."""
        module = self.run.accelerator.unwrap_model(self.module)
        for dropout in hf.active_dropout(module, hf.pretrained(module)):
            raise ConfigError(f"{self.role}: {dropout} {why}: set it to 0")

    def standing(self) -> dict[str, float]:
        """Where this role stands: learning rate of the last update, updates made, updates skipped."""
        return {"lr": self.optimizers[0].param_groups[0]["lr"], "updates": self.updates, "skipped": self.skipped}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The module has the moving average for weights, if there is one; nothing must be trained meanwhile."""
        if self.ema is None:
            yield
            return
        self.ema.swap()
        try:
            yield
        finally:
            self.ema.swap()

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under Hugging Face names, one at a time, adapters merged. Every process must iterate."""
        body = hf.pretrained(self.run.accelerator.unwrap_model(self.module))
        modules = dict(body.named_modules())
        for name, parameter in body.named_parameters():
            if ".lora_" in name:
                continue
            value = parameter.detach()
            value = value.full_tensor() if isinstance(value, DTensor) else value
            if ".base_layer." in name:
                owner, _, leaf = name.rpartition(".base_layer.")
                if leaf == "weight":
                    with torch.no_grad():
                        delta = modules[owner].get_delta_weight("default")
                    value = value + (delta.full_tensor() if isinstance(delta, DTensor) else delta)
                name = f"{owner}.{leaf}"
            yield name, value

    def state_dict(self) -> dict[str, int]:
        return {"updates": self.updates, "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.updates, self.skipped = state["updates"], state["skipped"]
        self.skipped_in_a_row = state["skipped_in_a_row"]


def add_lora(body: nn.Module, cfg: Lora) -> None:
    """Freeze the body and put adapters into it, in place; names of other weights gain ``.base_layer``."""
    targets = cfg.targets if isinstance(cfg.targets, str) else list(cfg.targets)
    config = LoraConfig(r=cfg.r, lora_alpha=cfg.alpha, lora_dropout=cfg.dropout, target_modules=targets)
    inject_adapter_in_model(config, body)


def _accumulate(sums: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    for name, value in new.items():
        value = value.detach()
        if name not in sums:
            sums[name] = value
        else:
            sums[name] = torch.maximum(sums[name], value) if name.endswith("_max") else sums[name] + value
