"""What tests do to a training process from inside: watch it, kill it at a chosen moment, spoil its numbers."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import torch

from recipes.orz import recipe
from recipes.orz.reward import MathReward
from stepstack.core import checkpoint
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.generation.hf import HfGenerator
from stepstack.generation.service import weights as service_weights
from stepstack.rl import update
from stepstack.rl.prompts import PromptStream
from stepstack.scoring import child_process
from stepstack.scoring.maths.pool import GraderPool


def record(file: Path) -> None:
    """Append every rollout to ``file``, and draw from each global random source in each step, so that a resumed run
    shows whether it has them back."""
    generate, credit = HfGenerator.generate, update.credit

    def recorded(self, prompts, sampling):
        for group in generate(self, prompts, sampling):
            with file.open("a") as out:
                for r in group.rollouts:
                    who = f"{r.prompt.problem.index} {r.prompt.problem.text} {r.sample}"
                    key = f"{self.version} {sampling.seed} {sampling.temperature} {who}"
                    value = [list(r.ids), [p.hex() for p in r.logprobs], r.finish]
                    out.write(json.dumps({"key": key, "value": value}) + "\n")
            yield group

    def credited(run, batch, cfg):
        credit(run, batch, cfg)
        run.log(random_torch=torch.rand(()).item(), random_numpy=np.random.random(), random_python=random.random())

    HfGenerator.generate, update.credit = recorded, credited


def recorder(run: Path) -> tuple:
    """The hook ``record`` with the file that ``processes.rollouts`` reads."""
    return record, run.parent / f"{run.name}-rollouts.jsonl"


def record_rounding(file: Path) -> None:
    """Append, of the log-probabilities of each micro-batch and of the gradients of each update, the share of numbers
    that bfloat16 does not hold."""
    surrogate, clip = update.surrogate, Trainable._clip

    def write(what: str, numbers: torch.Tensor) -> None:
        with file.open("a") as out:
            unrounded = (numbers.bfloat16().float() != numbers).float().mean().item()
            out.write(json.dumps({"what": what, "unrounded": unrounded}) + "\n")

    def recorded(logp_N, *arguments):
        write("logprobs", logp_N.detach())
        return surrogate(logp_N, *arguments)

    def clipped(self):
        write(f"gradients of {self.role}", torch.cat([p.grad.to_local().flatten() for p in self.parameters]))
        return clip(self)

    update.surrogate, Trainable._clip = recorded, clipped


def show_timeout() -> None:
    """Print how long this process waits for the others."""
    claim = Run._claim_folder

    def claimed(self):
        print("waits", torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout)
        claim(self)

    Run._claim_folder = claimed


def signal_in_step(role: str, step: int, number: int) -> None:
    """The process gets the signal in the middle of a step: before the first update of ``role`` in it."""
    update = Trainable.update

    def updated(self, *arguments):
        if self.role == role and self.run.step == step:
            os.kill(os.getpid(), number)
        return update(self, *arguments)

    Trainable.update = updated


def signal_in_stage(stage: str, step: int, number: int) -> None:
    """The process gets the signal in the middle of a step of the stage sft, or of dpo, the run around it."""
    update = Trainable.update

    def updated(self, *arguments):
        if self.run.inner == (stage == "sft") and self.run.step == step:
            os.kill(os.getpid(), number)
        return update(self, *arguments)

    Trainable.update = updated


def signal_in_folder(folder: str, step: int, number: int) -> None:
    """The process gets the signal in the middle of a step of the run, or the stage, in a folder of this name."""
    update = Trainable.update

    def updated(self, *arguments):
        if self.run.dir.name == folder and self.run.step == step:
            os.kill(os.getpid(), number)
        return update(self, *arguments)

    Trainable.update = updated


def kill_in_engine(shards: int) -> None:
    """kill -9 when so many shards are written and the next one is spoken."""
    from data.sets import speech

    records, written = speech._records, []

    def recorded(*arguments):
        if len(written) == shards:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(True)
        return records(*arguments)

    speech._records = recorded


def kill_in_save(step: int, moment: str) -> None:
    """kill -9 in the middle of writing the checkpoint of ``step``. moment: files (the last one is cut), manifest (all
    files there, nothing describes them), described (the manifest is there too), renamed (the checkpoint counts, nothing
    after it has happened)."""
    finish, rename = checkpoint.finish, Path.rename

    def renamed(self, target):
        if self.name == f".partial-{step:08d}":
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    def finished(partial, final, extra):
        if extra["step"] == step:
            if moment == "files":
                last = sorted(partial.rglob("*.distcp"))[-1]
                os.truncate(last, last.stat().st_size // 2)
            if moment == "described":
                Path.rename = renamed
            if moment in ("described", "renamed"):
                finish(partial, final, extra)
            os.kill(os.getpid(), signal.SIGKILL)
        finish(partial, final, extra)

    checkpoint.finish = finished


def full_disk(step: int) -> None:
    """From the checkpoint of ``step`` on, this process can write no file of more than 20 kB."""
    write = Run._write

    def written(self, partial):
        if self.step >= step:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return write(self, partial)

    Run._write = written


def slow_disk(seconds: float) -> None:
    """Each checkpoint takes so long to be described and renamed."""
    import time

    finish = checkpoint.finish

    def finished(partial, final, extra):
        time.sleep(seconds)
        finish(partial, final, extra)

    checkpoint.finish = finished


def nan_loss(first: int, last: int) -> None:
    """The actor's loss is NaN in the steps ``first`` to ``last``."""
    surrogate, take = update.surrogate, PromptStream.take
    now = {"step": -1}

    def poisoned(*arguments):
        loss_N, *rest = surrogate(*arguments)
        return (loss_N * float("nan") if first <= now["step"] <= last else loss_N, *rest)

    def taken(self, step, count):
        now["step"] = step
        return take(self, step, count)

    update.surrogate, PromptStream.take = poisoned, taken


def grader(name: str, timeout: float) -> None:
    """Grade by ``module:function``."""
    recipe.reward_of = lambda cfg: MathReward(GraderPool(2, timeout), grader=name)


def no_grader_processes() -> None:
    """A worker of the grader pool ends before it is ready."""
    child_process.sys.executable = shutil.which("false")


def slow_rank(seconds: float) -> None:
    """Rank 1 is late in writing its part of a checkpoint."""
    import time

    from stepstack.core import state

    save_random = state.save_random

    def saved(folder, rank):
        if rank == 1:
            time.sleep(seconds)
        return save_random(folder, rank)

    state.save_random = saved


def save_base_often(every: int) -> None:
    """The SFT stage saves more often than it would, so that a short one can be killed between two saves."""
    import dataclasses

    from recipes.orz import model
    from stepstack.core.run import stage

    def staged(run: Run, name: str, **changes):
        changes["save"] = dataclasses.replace(changes["save"], every=every)
        return stage(run, name, **changes)

    model.stage = staged


def delay_weights() -> None:
    """The generator of a training samples each step by the weights of one step before, and evaluates by the newest."""
    load, generate = HfGenerator.load, HfGenerator.generate
    last_two: dict[int, tuple] = {}

    def loaded(self, weights, version):
        newest = [(name, value.detach().clone()) for name, value in weights], version
        last_two[id(self)] = (*last_two.get(id(self), ())[-1:], newest)
        load(self, *newest)

    def generated(self, prompts, sampling):
        before, newest = last_two[id(self)][0], last_two[id(self)][-1]
        if sampling.n == 1:  # an evaluation
            yield from generate(self, prompts, sampling)
            return
        load(self, *before)
        yield from generate(self, prompts, sampling)
        load(self, *newest)

    HfGenerator.load, HfGenerator.generate = loaded, generated


def signal_in_unit(count: int, number: int) -> None:
    """A worker gets the signal in its unit number ``count``, before its first group."""
    generate, units = HfGenerator.generate, []

    def generated(self, prompts, sampling):
        units.append(prompts)
        if len(units) == count:
            os.kill(os.getpid(), number)
        yield from generate(self, prompts, sampling)

    HfGenerator.generate = generated


def slow_units(seconds: float) -> None:
    """A worker waits before each unit."""
    generate = HfGenerator.generate

    def generated(self, prompts, sampling):
        time.sleep(seconds)
        yield from generate(self, prompts, sampling)

    HfGenerator.generate = generated


def signal_after_save(step: int, number: int) -> None:
    """The process gets the signal once the checkpoint of a step is whole."""
    save = Run.save

    def saved(self):
        save(self)
        if self.step == step and not self.inner:
            os.kill(os.getpid(), number)

    Run.save = saved


def no_room_for_weights(version: int) -> None:
    """The disk has no room for the file of a version of weights."""
    save_file = service_weights.save_file

    def saved(tensors, file):
        if int(file.name.split(".")[1]) == version:
            raise OSError(28, "No space left on device", str(file))
        save_file(tensors, file)

    service_weights.save_file = saved
