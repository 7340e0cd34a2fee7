"""Real training processes for the tests.

They are forked from a server that has imported the libraries, so that each starts in a fraction of a second instead of
six; else they are what the shell would start: own memory, own signals, killable.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from stepstack.config import ROOT
from stepstack.core import tree
from stepstack.report import jsonl

MINI = str(ROOT / "tests" / "system" / "mini.yaml")
CLOCK = ("time/", "cpu_s", "tokens_per_s", "mfu", "memory_gib", "checkpoint_fallbacks")  # metrics that may differ
GAE = ("advantage.type=gae", "actor_updates=2", "critic_updates=4")
LIMIT = 240  # seconds that a process may take before the test fails
# Adam divides a gradient by its own size: a first step turns a rounding error beside a gradient of nearly zero into one
# of the size of the learning rate, on some processors and not on others. An eps above most gradients makes the steps
# smooth in the gradients, and makes them show their scale, which plain Adam hides. A small rate of the critic keeps its
# own rounding from growing over its updates.
SMOOTH = ("actor.optim.eps=1e-3", "critic.optim.eps=1e-3", "critic.optim.lr=1e-3")

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "recipes.orz.recipe",
        "stepstack.cli",
        "stepstack.loops.diffusion",
        "transformers.models.qwen2.modeling_qwen2",
        "transformers.modeling_layers",
    ]
)
_NUMBERS = itertools.count()  # of started processes, for the names of their logs
Hook = Callable[..., None]


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code (-9: killed), and what it had written."""

    code: int
    out: str
    err: str


class Started:
    """A running `stepstack` process."""

    def __init__(self, logs: Path, words: Sequence[str], hooks: Sequence[tuple], env: dict[str, str]):
        logs.mkdir(parents=True, exist_ok=True)
        number = next(_NUMBERS)
        self.files = logs / f"out-{number}", logs / f"err-{number}"
        self.process = _SERVER.Process(target=_main, args=(self.files, list(words), list(hooks), env))
        self.process.start()

    def wait(self) -> Ended:
        self.process.join(LIMIT)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"still running after {LIMIT} s:\n{self.files[1].read_text()}")
        return Ended(self.process.exitcode, *(file.read_text() for file in self.files))


def _main(files: tuple[Path, Path], words: list[str], hooks: list[tuple], env: dict[str, str]) -> None:
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(env)
    for hook, *arguments in hooks:
        hook(*arguments)
    from stepstack.cli import main as cli

    sys.exit(cli.main(words))


def stepstack(
    run: Path,
    *words: str,
    verb: str = "train",
    hooks: Sequence[tuple] = (),
    env: dict[str, str] | None = None,
    report: bool = False,
    config: str = MINI,
) -> Started:
    """`stepstack train mini` in the folder ``run``; flags and overrides follow. Hooks are (function, argument ...).
    Without ``report`` the page of plots is left out, which costs more than all the rest."""
    hooks = hooks if report else (*hooks, (no_report,))
    words = (verb, config, f"name={run.name}", f"dir={run.parent}", *words)
    return Started(run.parent / f"{run.name}-logs", words, hooks, env or {})


def no_report() -> None:
    from recipes.orz import recipe

    recipe.report_outcome = lambda run: None


def train(run: Path, *words: str, **how: Any) -> Ended:
    """``how``: as of ``stepstack``."""
    return stepstack(run, *words, **how).wait()


def train_ranks(
    run: Path, count: int, *words: str, rank_hooks: Mapping[int, Sequence[tuple]] = {}, **how: Any
) -> list[Ended]:
    """The same in ``count`` processes with the environment that torchrun gives them. ``rank_hooks``: hooks of single
    processes; ``how``: as of ``stepstack``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    words = ("launch.file=cpu-ddp", f"launch.processes_per_node={count}", *words)
    ranks = [
        stepstack(
            run,
            *words,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            **how | {"hooks": (*how.get("hooks", ()), *rank_hooks.get(rank, ()))},
        )
        for rank in range(count)
    ]
    return [rank.wait() for rank in ranks]


def ok(ended: Ended) -> Ended:
    assert ended.code == 0, f"exit code {ended.code}\n{ended.out}\n{ended.err}"
    return ended


# -- what a run left ---------------------------------------------------------------------------------------------------


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock; a torn line is an error."""
    read = jsonl.read(run / "metrics.jsonl")
    assert read.torn == 0
    return [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in read]


def checkpoint(run: Path, step: int) -> dict[str, Any]:
    """Everything in a checkpoint that a next step depends on: weights, optimizers, random states, counters."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    facts = json.loads((folder / "state.json").read_text())
    kept = [file.stem for file in folder.glob("*.safetensors")]
    found: dict[str, Any] = {name: tree.read(folder, name) for name in kept}
    found |= {role: role_state(folder / role) for role in facts["trainables"]}
    return found | {"state": facts}


def role_state(folder: Path) -> dict[str, Any]:
    """Weights, optimizers and moving average of a role, whole, whichever processes wrote them."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp_to_torch_save(folder, Path(place) / "state.pt")
        return torch.load(Path(place) / "state.pt", weights_only=False)


def samples(run: Path, when: str) -> list[dict[str, Any]]:
    """Rows of samples.jsonl of all evaluations at a moment."""
    return [row for file in sorted((run / "evals" / when).glob("*/samples.jsonl")) for row in jsonl.read(file)]


def rollouts(run: Path) -> dict[str, Any]:
    """What ``hooks.record`` wrote: key of a rollout (policy version, seed, problem, sample) -> tokens, logprobs. A step
    that was done twice must have given the same rollouts both times."""
    found: dict[str, Any] = {}
    for row in jsonl.read(run.parent / f"{run.name}-rollouts.jsonl"):
        assert found.setdefault(row["key"], row["value"]) == row["value"]
    return found


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two nested values are not bit for bit equal."""
    if type(a) is not type(b):
        return [f"{place}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [f"{place}: tensors differ"]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{place}: keys differ: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{place}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{place}: {len(a)} and {len(b)} items"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{place}[{i}]")]
    same = a.tobytes() == b.tobytes() if hasattr(a, "tobytes") else a == b
    return [] if same else [f"{place}: {a!r} and {b!r}"]


def trajectory(run: Path, steps: int) -> dict[str, Any]:
    """All that two equal runs must share."""
    return {
        "metrics": rows(run),
        "checkpoint": checkpoint(run, steps),
        "before": samples(run, "before"),
        "after": samples(run, "after"),
        "model": load_file(run / "model" / "model.safetensors"),
    }


def numbers(run: Path) -> list[dict[str, float]]:
    """Metrics that both must share. The draws of the test's own recorder are made in each process."""
    return [{k: v for k, v in row.items() if not k.startswith("random_")} for row in rows(run)]


def distance(a: Path, b: Path, step: int) -> float:
    """Largest difference of any weight of actor and critic."""
    one, two = (checkpoint(run, step) for run in (a, b))
    assert one["state"]["trainables"].keys() == two["state"]["trainables"].keys()
    pairs = [(one[role]["weights"], two[role]["weights"]) for role in one["state"]["trainables"]]
    assert all(a.keys() == b.keys() for a, b in pairs)
    return max((a[name] - b[name]).abs().max().item() for a, b in pairs for name in a)


def sampled(run: Path) -> dict[str, tuple]:
    return {key: (ids, finish) for key, (ids, _, finish) in rollouts(run).items()}
