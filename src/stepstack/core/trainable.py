"""One role that learns: a module, its optimizers, its own count of updates."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from stepstack.config import ConfigError
from stepstack.core import adapters, hf
from stepstack.core.config import TrainableConfig
from stepstack.core.ema import Ema
from stepstack.core.optim import optimizers, resolve_optimizer
from stepstack.core.sharding import clip_gradients, no_sync
from stepstack.models.dropout import active_dropout

if TYPE_CHECKING:
    from stepstack.core.run import Run
    from stepstack.core.types import LossOut


class NonFiniteGradient(FloatingPointError):
    """Too many updates in a row had a gradient that is NaN or infinite."""


class Trainable:
    """Made by ``Run.trainable``. ``updates`` counts optimizer steps and drives the schedule. ``part`` names what this
    process has of a role that is in parts, as a checkpoint has them; empty where every process has all of it, or a
    shard of every weight."""

    part = ""

    def __init__(self, run: Run, role: str, module: nn.Module, cfg: TrainableConfig, total_updates: int):
        self.run, self.role, self.cfg, self.total_updates = run, role, cfg, total_updates
        self.updates = self.skipped = self.skipped_in_a_row = 0
        self._partial: dict[str, Tensor] = {}  # metrics of what was accumulated
        self._partial_counts, self._partial_seconds = (0.0, 0.0), 0.0
        body = hf.pretrained(module)
        if cfg.lora is not None:
            adapters.add_lora(body, cfg.lora)
        if cfg.gradient_checkpointing:
            hf.enable_gradient_checkpointing(body)
        self.stored_dtype = hf.stored_dtype(body)  # that of exported weights
        self.size = sum(p.numel() for p in module.parameters())
        self.optim = resolve_optimizer(cfg.optim, run.config.scale)
        self.module = self._placed(module.train())
        self.unwrapped = run.accelerator.unwrap_model(self.module)
        # Made last, on the parameters that are trained: under FSDP these are new ones.
        self.optimizers = optimizers(self.unwrapped, self.optim)
        self.parameters = [p for p in self.unwrapped.parameters() if p.requires_grad]
        self._check_optimizers()
        self._check_types()
        self.ema = Ema(self.parameters, cfg.ema) if cfg.ema else None

    def _placed(self, module: nn.Module) -> nn.Module:
        return self.run.placed(module, self.role)

    def _check_optimizers(self) -> None:
        """Every trained parameter must be in exactly one optimizer; one that is in none would never learn, unseen."""
        held = Counter(
            id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]
        )
        wrong = [name for name, p in self.unwrapped.named_parameters() if held[id(p)] != p.requires_grad]
        if wrong:
            raise RuntimeError(f"{self.role}: {len(wrong)} parameters are not in exactly one optimizer: {wrong[:3]}")

    def _check_types(self) -> None:
        """ConfigError for weights that learn in less than float32: an update below 1/256 of a weight is rounded away,
        and at the learning rates of RL nearly all are. FSDP2 makes its shards float32."""
        if half := [name for name, p in self.unwrapped.named_parameters() if p.requires_grad and p.itemsize < 4]:
            raise ConfigError(
                f"{self.role}: {len(half)} of the weights that are trained are {self.parameters[0].dtype}, such as "
                f"{half[0]}, and most updates would be rounded away: set the model's dtype to float32 (precision=bf16 "
                "computes in bfloat16 all the same), train adapters (lora), or take launch.file=fsdp2"
            )

    def update(
        self, micros: Sequence[Any], loss: Callable[[nn.Module, Any], LossOut], denominator: float
    ) -> dict[str, float]:
        """One optimizer step. ``loss(module, micro)`` returns sums; their total over all micro-batches and processes is
        divided by ``denominator``. Metrics come back as global means over what the loss counts, names ``<role>/...``.

        A non-finite gradient or loss skips the step, is counted, and raises NonFiniteGradient when ``max_skipped``
        follow each other; the weights then are still the last good ones.
        """
        started = time.perf_counter()
        metrics, work = self._forwards(micros, loss, denominator, learn=True)
        metrics |= self._step(metrics["loss"])
        self.run.count_work(6 * self.size * work, time.perf_counter() - started)
        return self._named(metrics)

    @torch.no_grad()
    def measure(
        self, micros: Sequence[Any], loss: Callable[[nn.Module, Any], LossOut], denominator: float
    ) -> dict[str, float]:
        """The metrics of ``update``, without an update and without the gradient's norm."""
        return self._named(self._forwards(micros, loss, denominator, learn=False)[0])

    def _named(self, metrics: dict[str, float]) -> dict[str, float]:
        return {f"{self.role}/{name}": value for name, value in metrics.items()}

    def accumulate(self, micros: Sequence[Any], loss: Callable[[nn.Module, Any], LossOut]) -> None:
        """Sum up gradients and metrics of a part of an optimizer step whose denominator is not known yet."""
        started = time.perf_counter()
        count, work = self._sum_up(micros, loss, 1.0, learn=True, sums=self._partial)
        self._partial_counts = self._partial_counts[0] + count, self._partial_counts[1] + work
        self._partial_seconds += time.perf_counter() - started

    def finish_update(self, denominator: float) -> dict[str, float]:
        """The optimizer step of all that was accumulated, divided by ``denominator``; else as ``update``, whose
        gradient it has but for the order of a sum and a division."""
        started = time.perf_counter()
        metrics, work = self._reduce(self._partial, *self._partial_counts, denominator=denominator)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.div_(denominator)
        metrics |= self._step(metrics["loss"])
        self.run.count_work(6 * self.size * work, self._partial_seconds + time.perf_counter() - started)
        self._partial, self._partial_counts, self._partial_seconds = {}, (0.0, 0.0), 0.0
        return self._named(metrics)

    def _forwards(
        self, micros: Sequence[Any], loss: Callable[[nn.Module, Any], LossOut], denominator: float, learn: bool
    ) -> tuple[dict[str, float], float]:
        """(metrics, tokens that went through the model) over all processes; with ``learn``, gradients are summed up."""
        sums: dict[str, Tensor] = {}
        count, work = self._sum_up(micros, loss, denominator, learn, sums)
        return self._reduce(sums, count, work, denominator)

    def _sum_up(
        self,
        micros: Sequence[Any],
        loss: Callable[[nn.Module, Any], LossOut],
        denominator: float,
        learn: bool,
        sums: dict[str, Tensor],
    ) -> tuple[float, float]:
        """(count, tokens that went through the model) of this process, whose metrics are added to ``sums``."""
        accelerator = self.run.accelerator
        count = work = 0.0
        for i, micro in enumerate(micros):
            last = i == len(micros) - 1
            with contextlib.nullcontext() if last else no_sync(self.module):
                with accelerator.autocast():
                    out = loss(self.module, micro)
                if learn:
                    weight = 0.0 if micro.blank else accelerator.num_processes / denominator
                    # Not multiplied by 0 for a blank: 0 x inf is NaN.
                    total = torch.where(torch.tensor(micro.blank, device=out.total.device), 0.0, out.total) * weight
                    accelerator.backward(total)
            new = {"loss": out.total, **out.metrics}
            _accumulate(sums, {k: torch.zeros_like(v) for k, v in new.items()} if micro.blank else new)
            if not micro.blank:
                count, work = count + out.count, work + out.work
        return count, work

    def _reduce(
        self, sums: dict[str, Tensor], count: float, work: float, denominator: float
    ) -> tuple[dict[str, float], float]:
        """(means over what all processes counted, their work); maxima stay maxima; the loss has its own denominator.
        Where nothing was counted, the loss is the only metric."""
        means = sorted(name for name in sums if not name.endswith("_max"))
        peaks = sorted(name for name in sums if name.endswith("_max"))
        counts = [torch.tensor(value, dtype=torch.float64) for value in (count, work)]
        *totals, count, work = self.run.sum(torch.stack([*(sums[n].double().cpu() for n in means), *counts])).tolist()
        values = dict(zip(means, totals, strict=True))
        summed = values.pop("loss")
        if count == 0:
            return {"loss": summed / denominator}, work
        out = {name: value / count for name, value in values.items()}
        if peaks:
            out |= dict(
                zip(peaks, self.run.max(torch.stack([sums[n].double().cpu() for n in peaks])).tolist(), strict=True)
            )
        return {"loss": summed / denominator, **out}, work

    def _step(self, loss: float) -> dict[str, float]:
        factor = self.optim.schedule.factor(self.updates, self.total_updates)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        size = self._clip()
        if math.isfinite(size) and math.isfinite(loss):
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
            raise self._not_finite()
        return {"grad_norm": size}

    def _clip(self) -> float:
        """Clip the gradients; their norm before, the same on every process."""
        return clip_gradients(self.parameters, self.cfg.clip)

    def _not_finite(self) -> NonFiniteGradient:
        return NonFiniteGradient(
            f"{self.role}: {self.skipped_in_a_row} updates in a row had a non-finite gradient (a NaN loss). "
            f"The weights are those of update {self.updates}; checkpoints are in {self.run.checkpoints}: "
            "look at the rows of these steps, or begin anew with a lower learning rate"
        )

    def refuse_dropout(self, why: str) -> None:
        """ConfigError with the reason ``why`` if anything of it drops out in training."""
        for dropout in active_dropout(self.unwrapped, hf.pretrained(self.unwrapped)):
            raise ConfigError(f"{self.role}: {dropout} {why}: set it to 0")

    def standing(self) -> dict[str, float]:
        """Where this role stands: learning rate of the last update, updates made, updates skipped."""
        return {"lr": self.optimizers[0].param_groups[0]["lr"], "updates": self.updates, "skipped": self.skipped}

    def for_sampling(self, build: Callable[[], nn.Module]) -> nn.Module:
        """The module to sample with, each process for itself: this role's own, or, where that is sharded and a forward
        pass takes all processes, a whole model by ``build``, into which ``averaged`` puts the weights."""
        if not self.run.sharded:
            return self.module
        with torch.random.fork_rng():  # the weights that it draws are not of the run
            return build().to(self.run.device).eval()

    @contextlib.contextmanager
    def averaged(self, sampled: nn.Module | None = None) -> Iterator[None]:
        """The module has the moving average for weights, if there is one, and so has a copy ``for_sampling``; nothing
        must be trained meanwhile. Every process must enter."""
        if self.ema is not None:
            self.ema.swap()
        try:
            if sampled is not None and sampled is not self.module:
                self._copy_into(sampled)
            yield
        finally:
            if self.ema is not None:
                self.ema.swap()

    def finished_weights(self) -> Iterator[tuple[str, Tensor]]:
        """``named_weights`` of a training that succeeded, in the type that its model was read in: NonFiniteGradient, on
        every process, where its last update was skipped or a weight is not finite."""
        return self._finite((name, full.to(self.stored_dtype)) for name, full in self.named_weights())

    def finished_adapters(self) -> dict[str, Tensor]:
        """The adapters alone (``adapters.gathered``) of a training that succeeded; else as ``finished_weights``."""
        return dict(self._finite(adapters.gathered(self).items()))

    def _finite(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        if self.skipped_in_a_row:
            raise self._not_finite()
        for name, value in weights:
            if not torch.isfinite(value).all():
                raise NonFiniteGradient(
                    f"{self.role}: {name} is not finite after update {self.updates}: no model is exported; checkpoints "
                    f"are in {self.run.checkpoints}: begin anew with a lower learning rate"
                )
            yield name, value

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under Hugging Face names, one at a time, adapters merged. Every process must iterate."""
        if isinstance(self.module, FSDPModule):
            self.module.reshard()  # a forward without a backward leaves the root whole, in the precision of the forward
        body = hf.pretrained(self.unwrapped)
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

    def _copy_into(self, whole: nn.Module) -> None:
        places = dict(hf.pretrained(whole).named_parameters())
        with torch.no_grad():
            for name, value in self.named_weights():
                places.pop(name).copy_(value)
        assert not places, f"{self.role} has no weights for {', '.join(places)}"

    def state_dict(self) -> dict[str, int | None]:
        """Counts of updates, and the scale of its adapters, without which nobody can merge them."""
        counts = {"updates": self.updates, "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        alpha = None if self.cfg.lora is None else self.cfg.lora.alpha
        return counts | {"total_updates": self.total_updates, "lora_alpha": alpha}

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Take over the counts of a checkpoint; returns what is to be said where the run was planned for another number
        of updates, else an empty string."""
        self.updates, self.skipped = state["updates"], state["skipped"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        planned = state["total_updates"]
        return "" if planned == self.total_updates else self._rescheduled(planned)

    def _rescheduled(self, planned: int) -> str:
        """Sentence on the learning rate, which may jump, where another number of updates than this was ``planned``."""
        schedule, peak = self.optim.schedule, self.optimizers[0].param_groups[0]["peak_lr"]
        change = f"{self.role}: {planned} -> {self.total_updates} updates in all"
        if schedule.kind == "constant":
            return f"{change}: its learning rate is constant and stays as it was"
        old, new = (peak * schedule.factor(self.updates, total) for total in (planned, self.total_updates))
        return (
            f"{change}: the {schedule.kind} decay of its learning rate now ends at update {self.total_updates}; "
            f"at update {self.updates}, where this run stands, the learning rate goes from {old:.3g} to {new:.3g}"
        )


def _accumulate(sums: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    for name, value in new.items():
        value = value.detach()
        if name not in sums:
            sums[name] = value
        else:
            sums[name] = torch.maximum(sums[name], value) if name.endswith("_max") else sums[name] + value
