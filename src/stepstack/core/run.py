"""Run: the verbs that every loop speaks. Nothing here knows an algorithm."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather_object, set_seed
from torch import Tensor, nn

from stepstack.config import ConfigError, RunConfig
from stepstack.core import checkpoint, hf, preflight, sharding, state, tree
from stepstack.core.config import TrainableConfig
from stepstack.core.device import memory_gib, peak_flops
from stepstack.core.export import write_model
from stepstack.core.folder import claim
from stepstack.core.live_report import LiveReport
from stepstack.core.processes import Machines, this_place
from stepstack.core.progress import Progress
from stepstack.core.stage_times import seconds_by_stage
from stepstack.core.trackers import Trackers
from stepstack.core.trainable import Trainable
from stepstack.report import jsonl

C = TypeVar("C", bound=RunConfig)
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T", bound=Trainable)
log = logging.getLogger(__name__)


class Stateful(Protocol):
    """State for ``Run.keep``."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Run(Generic[C]):
    """One training run in ``runs/<name>/``: config.json, metrics.jsonl, checkpoints/, model/, report.html.

    Resumes by itself: the same command in the same folder goes on from the newest whole checkpoint.
    """

    def __init__(
        self,
        config: C,
        folder: Path | None = None,
        stop_after: int | None = None,
        visible: bool = True,
        shard: bool = True,
        live: LiveReport | None = None,
        command: str = "",
    ):
        """``visible``: whether there is a bar; two at a time would write over each other. ``shard``: whether models are
        sharded where the launch file asks for it; False keeps a whole copy on each process. ``live``: the report of
        the run that this one is a stage of. ``command``: the line that repeats the run, if it came from one."""
        self.config, self.visible, self.shard = config, visible, shard
        self.live, self.command = live, command
        self.dir = folder or config.folder
        self.checkpoints = self.dir / "checkpoints"
        self.metrics_file = self.dir / "metrics.jsonl"
        preflight.refuse_trackers(config)
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=config.launch.timeout))],
        )
        if self.processes != config.launch.processes:
            raise ConfigError(
                f"the config asks for {config.launch.processes} processes (launch.nodes x launch.processes_per_node), "
                f"{self.processes} were started: use `stepstack launch {config.name}`, whose line --dry-run prints"
            )
        if self.processes > 1 and folder is None:
            preflight.agree(self.gather([preflight.fingerprint(config)]))
        if self.device.type == "cpu":
            torch.set_num_threads(config.launch.threads)
        if self.sharded:
            plugin = self.accelerator.state.fsdp_plugin
            plugin.mixed_precision_policy = sharding.mixed_precision(config.precision)
        self.machines = Machines(self.gather([this_place()]), self.rank, config.launch.processes_per_node)
        self.reseed()
        self.trainables: dict[str, Trainable] = {}
        self.kept: dict[str, Stateful] = {}
        self.step = 0
        self.resumed_from: int | None = None
        self.fallbacks = 0
        self.stop_after, self.inner = stop_after, folder is not None
        self.trackers = Trackers(config, self.dir, f"{config.name}-{self.dir.name}" if self.inner else config.name)
        self._stop = self._looked = False
        self._saving: checkpoint.PendingCheckpoint | None = None
        self._save_groups: dict[str, torch.distributed.ProcessGroup] = {}
        self._claim_folder()
        self._begin_step()

    def keep_report(self, write: Callable[[Path], Path], about: str, stages: Mapping[str, str]) -> None:
        """Have the report written while the run goes on (``LiveReport``). A recipe calls it before its first stage."""
        if self.is_main:
            seconds = seconds_by_stage(self.dir, self.config, stages)
            self.live = LiveReport(self.dir, write, about, stages, self.command, seconds)

    def end_report(self) -> Path | None:
        """Write the report of a run that is finished; its path, None where it is none to keep or was written before."""
        return self.live.end("finished") if self.live else None

    # -- places and processes ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def sum(self, x: Tensor) -> Tensor:
        """Sum over processes; the way to global denominators. Comes back where and in the precision it came from."""
        return self._reduce(x, torch.distributed.ReduceOp.SUM) if self.processes > 1 else x

    def max(self, x: Tensor) -> Tensor:
        return self._reduce(x, torch.distributed.ReduceOp.MAX) if self.processes > 1 else x

    def gather(self, items: list) -> list:
        """Python objects of all processes, in rank order, on every process."""
        return gather_object(items) if self.processes > 1 else items

    def _reduce(self, x: Tensor, op: Any) -> Tensor:
        y = x.to(self.device, copy=True)
        torch.distributed.all_reduce(y, op=op)
        return y.to(x.device)

    def reseed(self) -> None:
        """Let random numbers depend on the seed alone from here on, not on what this process did before. A recipe calls
        it before it draws weights, since a resumed run has not trained the stages that a first run has."""
        set_seed(self.config.seed)

    # -- models --------------------------------------------------------------------------------------------------

    def trainable(self, role: str, module: nn.Module, cfg: TrainableConfig, total_updates: int) -> Trainable:
        """Place one role and make its optimizers."""
        return self.add(Trainable(self, role, module, cfg, total_updates))

    def add(self, trainable: T) -> T:
        """Have a role in the run: in its checkpoints, rows and exports."""
        self.trainables[trainable.role] = trainable
        return trainable

    def refuse_dropout(self, why: str) -> None:
        """ConfigError with the reason ``why`` if anything of any role drops out in training."""
        for trainable in self.trainables.values():
            trainable.refuse_dropout(why)

    def frozen(self, module: nn.Module) -> nn.Module:
        """Placed on the device (under FSDP: sharded), without gradients, never in a checkpoint."""
        module.requires_grad_(False).eval()
        if self.sharded:
            return sharding.shard(self.accelerator, module, "a frozen model")
        return module.to(self.device)

    def placed(self, module: nn.Module, role: str) -> nn.Module:
        """A module that learns as the launch file wants it: on the device, copied by DDP, or sharded by FSDP2."""
        if self.sharded:
            return sharding.shard(self.accelerator, module, role)
        if self.accelerator.distributed_type == DistributedType.FSDP:
            return sharding.replicate(module, self.device, self.processes)
        return self.accelerator.prepare_model(module)

    @property
    def sharded(self) -> bool:
        """Whether models are spread over the processes (FSDP)."""
        return self.shard and self.accelerator.distributed_type == DistributedType.FSDP

    def keep(self, name: str, thing: Stateful) -> None:
        """Have something else than a role in the checkpoints (``core.tree``): what process 0 has of it."""
        self.kept[name] = thing

    def load(self, whole: Callable[[], M], empty: Callable[[], M]) -> M:
        """A model as this process needs it. Under FSDP only process 0 reads weights, which ``trainable`` and ``frozen``
        broadcast shard by shard; the others build the ``empty`` one, whose parameters take no memory."""
        if not self.sharded or self.is_main:
            return whole()
        return hf.without_memory(empty)

    def save_once(self, folder: Path, build: Callable[[], Sequence[Any]]) -> None:
        """Write what would exist only in memory as a folder, if it is not there: a model, its tokenizer or processor,
        by their ``save_pretrained``. By the first process; the others wait."""
        if self.is_main and not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")
            for part in build():
                part.save_pretrained(partial)
            partial.rename(folder)
        self.accelerator.wait_for_everyone()

    # -- the steps -----------------------------------------------------------------------------------------------

    def steps(self, total: int, evaluate: Callable[[], Mapping[str, float]] | None = None) -> Iterator[int]:
        """Yield step numbers from where the run stands; after each, evaluate and save on schedule, log, heed SIGTERM.

        ``evaluate`` also runs before the first step and after the last.
        """
        self.resume()
        if self.step > total:
            raise ConfigError(
                f"{self.dir} stands at step {self.step}, which is beyond steps={total}: give it steps={self.step} or "
                "more, or give this run another name (name=...)"
            )
        every = self.config.eval_every
        self._begin_step()
        visible = self.visible and self.is_main
        bar = Progress(self.config.name, total, self.step, visible, *self._stages())
        with self._heeding_sigterm(), bar as self.progress:
            if evaluate and self.step == 0:
                self.log(**evaluate())
                self._write_row(0)
            while self.step < total:
                yield self.step
                self.step += 1
                if evaluate and (self.step == total or (every and self.step % every == 0)):
                    with self.timer("evaluate"):
                        self.log(**evaluate())
                stop = self._should_stop(total)
                # Before the save: killed in between, the row is written again; the other way round it would be lost.
                self._write_row(self.step)
                if self.step == total or stop or (self.config.save.every and self.step % self.config.save.every == 0):
                    with self.timer("save"):  # counted in the row of the next step
                        self.save()
                        if stop or self.step == total:
                            self.settle()
                if stop:
                    break
        if self.step < total:
            where = f"after step {self.step} of {total}; the same command goes on from there"
            if self.live:
                self.live.end("stopped", where)
            self.finish()
            raise SystemExit(self._say(f"stopped {where}"))

    def timer(self, name: str) -> contextlib.AbstractContextManager:
        """Wall seconds of a phase, logged as ``time/<name>``."""
        return self._timed(name)

    def log(self, **metrics: float) -> None:
        """Global values of this step. A name logged twice in a step is averaged (``_max``: the larger)."""
        for name, value in metrics.items():
            self._pending.setdefault(name, []).append(float(value))

    def count_work(self, flops: float, seconds: float) -> None:
        """Model FLOPs of updates over all processes, for MFU (6 x parameters x tokens: attention is not counted)."""
        self._flops += flops
        self._work_seconds += seconds

    # -- keeping -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write checkpoints/step-<n> atomically and prune. Killed in the middle, the last one stays whole. With
        ``save.asynchronous`` training goes on when the state is copied; ``settle`` waits for the rest."""
        self.settle()
        partial = self.checkpoints / f".partial-{self.step:08d}"
        with checkpoint.writing(partial):
            writes = self._write(partial)
        finish = functools.partial(self._finish_save, partial, self.step) if self.is_main else None
        self._saving = checkpoint.PendingCheckpoint(writes, finish)
        if not self.config.save.asynchronous:
            self.settle()

    def _write(self, partial: Path) -> list[Future[Any]]:
        """Write the files of a checkpoint; what is still being written when it returns."""
        if self.is_main:
            shutil.rmtree(partial, ignore_errors=True)  # of a killed run
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        writes = []
        for role, trainable in self.trainables.items():
            if self.config.save.asynchronous:
                writes.append(state.begin_save(trainable, partial / role, self._save_group(role)))
            else:
                state.save(trainable, partial / role)
        state.save_random(partial, self.rank)
        self.accelerator.wait_for_everyone()  # each process writes its random state
        if self.is_main:
            for name, thing in self.kept.items():
                tree.write(thing.state_dict(), partial, name)
            facts = {
                "step": self.step,
                "launch": self._launch(),
                "processes": self.processes,
                "trainables": {role: trainable.state_dict() for role, trainable in self.trainables.items()},
            }
            (partial / "state.json").write_text(json.dumps(facts))
        return writes

    def settle(self) -> None:
        """Wait until the checkpoint that is being written counts, if there is one. Every process calls it."""
        if self._saving is not None:
            with checkpoint.writing(self.checkpoints):
                self._saving.wait()
            self._saving = None
            self.accelerator.wait_for_everyone()

    def _finish_save(self, partial: Path, step: int) -> None:
        checkpoint.finish(partial, self.checkpoints / f"step-{step:08d}", {"step": step})
        checkpoint.prune(self.checkpoints, self.config.save.keep, step)

    def _save_group(self, role: str) -> torch.distributed.ProcessGroup | None:
        """A group over gloo for each role: they are written at the same time, beside the training."""
        if self.processes > 1 and role not in self._save_groups:
            timeout = timedelta(minutes=self.config.launch.timeout)
            self._save_groups[role] = torch.distributed.new_group(backend="gloo", timeout=timeout)
        return self._save_groups.get(role)

    def _launch(self) -> dict[str, Any]:
        """How models lie on the processes, which a checkpoint is bound to, and the launch file that says so."""
        return {"file": self.config.launch.file, "models": "sharded" if self.sharded else "whole"}

    def export(self, role: str, folder: Path, tokenizer: Any = None) -> Path:
        """Hugging Face folder of a role, which ``from_pretrained`` loads (``core.export``)."""
        write_model(self.trainables[role], folder, tokenizer, self.is_main)
        self.accelerator.wait_for_everyone()
        return folder

    def finish(self) -> None:
        """Close the trackers. The outer run also leaves the process group, which a stage still shares with it."""
        self.trackers.finish()
        if not self.inner:
            self.end_report()
            self.accelerator.end_training()

    # -- inside --------------------------------------------------------------------------------------------------

    def _claim_folder(self) -> None:
        """First use writes config.json; a later use must be the same run. The first process does it for all, which get
        the same one error."""
        refused: list[str] = []
        said: list[str] = []
        if self.is_main:
            try:
                said = claim(self.dir, self.config, self.inner)
            except (ConfigError, OSError) as error:
                refused = [str(error)]
        if refused := self.gather(refused):
            raise ConfigError(refused[0])
        for change in said:
            self._say(f"changed since the run began: {change}")

    def resume(self) -> int:
        """Load the newest whole checkpoint, once; a torn one is passed over, said and counted. The step it stands at.

        ``steps`` calls it; a loop that needs the weights before its first step calls it earlier.
        """
        if self._looked:
            return self.step
        self._looked = True
        for step, folder in list(checkpoint.newest_first(self.checkpoints)):
            if why := checkpoint.problem(folder):
                self.fallbacks += 1
                self._say(f"checkpoint {folder} is not whole ({why}): falling back to the one before")
                continue
            self._load(step, folder)
            break
        if self.fallbacks and self.resumed_from is None:
            self._say("no whole checkpoint is left: starting from step 0")
        if self.is_main:
            self.trackers.start(self.step, last=self._rewind_metrics())
        self.accelerator.wait_for_everyone()
        return self.step

    def _load(self, step: int, folder: Path) -> None:
        """ConfigError for the checkpoint of other roles, or of a launch file that places models otherwise."""
        facts = jsonl.read_json(folder / "state.json", "trainables")
        state.check_format(folder, facts)
        if set(facts["trainables"]) != set(self.trainables):
            raise ConfigError(
                f"{folder} holds roles {sorted(facts['trainables'])}, this run has {sorted(self.trainables)}: "
                "give this run another name (name=...)"
            )
        wrote, now = facts["launch"], self._launch()
        if wrote["models"] != now["models"]:
            raise ConfigError(
                f"{folder} was written by launch.file={wrote['file']}, which keeps models {wrote['models']}; "
                f"launch.file={now['file']} keeps them {now['models']}: resume with the one it was written by"
            )
        for role, trainable in self.trainables.items():
            state.load(trainable, folder / role)
            if change := trainable.load_state_dict(facts["trainables"][role]):
                self._say(change)
        for name, thing in self.kept.items():
            thing.load_state_dict(tree.read(folder, name))
        if self.rank < facts["processes"]:
            state.load_random(folder, self.rank)
        self.step = self.resumed_from = step
        self._say(f"resumed from {folder}")
        if self.processes != facts["processes"]:
            self._say(f"{self.processes} processes go on where {facts['processes']} stopped")

    def _rewind_metrics(self) -> int:
        """Rows later than the checkpoint will be computed again. The last step that there was, -1 for none."""
        if not self.metrics_file.is_file():
            return -1
        rows = jsonl.read(self.metrics_file)
        kept = [row for row in rows if row["step"] <= self.step and self.resumed_from is not None]
        jsonl.write_rows_atomic(self.metrics_file, kept)
        return max((row["step"] for row in rows), default=-1)

    def _begin_step(self) -> None:
        self._pending: dict[str, list[float]] = {}
        self._times: dict[str, float] = {}
        self._flops = self._work_seconds = 0.0
        self._started, self._cpu = time.perf_counter(), time.process_time()

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self._times[name] = self._times.get(name, 0.0) + time.perf_counter() - started

    def _write_row(self, step: int) -> None:
        row: dict[str, float] = {"step": step}
        for name, values in self._pending.items():
            row[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
        elapsed = time.perf_counter() - self._started
        row |= {f"time/{name}": seconds for name, seconds in self._times.items()}
        row["time/step"] = elapsed
        row["time/other"] = elapsed - sum(self._times.values())
        if "tokens" in row:
            row["tokens_per_s"] = row["tokens"] / elapsed
        if self._work_seconds:
            peak = peak_flops(self.device, self.config.precision, self.config.peak_tflops) * self.processes
            row["mfu"] = self._flops / self._work_seconds / peak
        for role, trainable in self.trainables.items():
            row |= {f"{role}/{name}": value for name, value in trainable.standing().items()}
        row["cpu_s"] = time.process_time() - self._cpu  # of this process, all its threads
        row["memory_gib"] = memory_gib(self.device)
        row["checkpoint_fallbacks"] = self.fallbacks
        if self.is_main:
            jsonl.append(self.metrics_file, row)
            self.progress.advance(step, row)
            self.trackers.log(row)
            if self.live:
                self.live.step(self._stages()[0], step, self.progress.total)
        self._begin_step()

    def _stages(self) -> tuple[str, list[str], float | None]:
        """Name of this stage, those of the stages after it, and the time of these in times of its own, if known."""
        stage = self.live.stage_of(self.dir) if self.live else ""
        return stage, *(self.live.later(stage) if self.live else ([], None))

    @contextlib.contextmanager
    def _heeding_sigterm(self) -> Iterator[None]:
        """SIGTERM ends the run after the step it falls in; the handler of before comes back, however they end."""
        previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _on_sigterm(self, number: int, frame: object) -> None:
        self._stop = True

    def _should_stop(self, total: int) -> bool:
        """All processes must agree, or the next collective hangs."""
        stop = self._stop or (self.stop_after is not None and self.step >= self.stop_after)
        return bool(self.max(torch.tensor([float(stop)])).item()) and self.step < total

    def _say(self, text: str) -> int:
        if self.is_main:
            print(text, file=sys.stderr, flush=True)
        return 0


def stage(run: Run, name: str, visible: bool = True, shard: bool = True, **changes: Any) -> Run:
    """A run inside a run (a warm start, a point of a sweep): its own folder, checkpoints and metrics, the same
    machines. ``visible=False`` inside of the outer run's steps, which have a bar already. ``shard=False`` for models so
    small, or used so, that each process should have them whole."""
    config = dataclasses.replace(run.config, **changes)
    return Run(config, folder=run.dir / name, stop_after=None, visible=visible, shard=shard, live=run.live)
