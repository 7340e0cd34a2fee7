"""A look at the machines before anything starts: packages, GPUs, memory, disk, port, and whether all have the same.

No torch. ``look`` says what it finds on this machine, ``agree`` compares the fingerprints of all processes of a run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from stepstack import user_code
from stepstack.config import CONFIGS, ROOT, ConfigError, Needed, RunConfig, digest, needed, to_dict, user_files

CODE = ("src", "recipes", "data", "evals", "kernels")
MANIFEST = "manifest.json"  # of a folder that `stepstack data` prepared
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of this machine with its memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Finding:
    """A line about one thing. ``wrong``: with it the run cannot work, and the line ends in what to do."""

    text: str
    wrong: bool = False


def look(config: RunConfig, head: bool) -> list[Finding]:
    """Findings on this machine. ``head``: whether it is known to be the one where the processes meet."""
    settings = yaml.safe_load((CONFIGS / "launch" / f"{config.launch.file}.yaml").read_text())
    kind, cpu = settings["distributed_type"], bool(settings.get("use_cpu"))
    shards = config.launch.processes if kind == "FSDP" else 1
    findings = packages(config)
    if not cpu:
        findings += devices(config, gpus(), shards)
    findings += disk(config, shards)
    if head and kind != "NO":
        findings += port(config)
    same = ", ".join(f"{what} {value[:12]}" for what, value in fingerprint(config).items() if what != "host")
    return [*findings, Finding(f"the same on all machines: {same}")]


def refuse(findings: Sequence[Finding]) -> None:
    """ConfigError with all that is wrong."""
    if wrong := [finding.text for finding in findings if finding.wrong]:
        raise ConfigError("this machine cannot run it:\n  " + "\n  ".join(wrong))


def packages(config: RunConfig) -> list[Finding]:
    """One finding for each package that the config needs and that is not installed."""
    return _lacking([*needed(config), *_trackers(config)])


def refuse_trackers(config: RunConfig) -> None:
    """ConfigError for trackers whose package is not installed: without it accelerate would log to nothing."""
    refuse(_lacking(_trackers(config)))


def _trackers(config: RunConfig) -> list[tuple[str, Needed]]:
    """The packages of ``trackers``, with the key."""
    line = "pip install -c constraints.txt"
    return [("trackers", Needed(name, f"{line} {name.replace('_', '-')}")) for name in config.trackers]


def _lacking(packages: Sequence[tuple[str, Needed]]) -> list[Finding]:
    lacking = [(key, package) for key, package in packages if not installed(package.module)]
    return [
        Finding(f"{key or 'recipe'}: the package {package.module} is not installed: {package.install}", wrong=True)
        for key, package in lacking
    ]


def installed(module: str) -> bool:
    """Whether a package is there to import; a mere folder of its name, such as the wandb/ of offline runs, is not."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def gpus() -> list[Gpu] | None:
    """The GPUs that nvidia-smi sees; None where there is no nvidia-smi, or it finds no driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    rows = [line.rpartition(",") for line in answer.stdout.splitlines() if line.strip()]
    return [Gpu(name.strip(), int(mib) * 2**20) for name, _, mib in rows]


def devices(config: RunConfig, found: Sequence[Gpu] | None, shards: int) -> list[Finding]:
    """Findings on the number of GPUs and their memory."""
    processes = config.launch.processes_per_node
    estimate = config.footprint(shards)
    if estimate is None:
        needs = "memory of a GPU: not estimated, since the config does not know the size of its models"
    else:
        rest = f"{estimate.activations / GIB:.3g} GiB of activations" if estimate.activations else "activations unknown"
        needs = f"memory of a GPU: {estimate.states / GIB:.3g} GiB of weights, gradients and moments, {rest}"
    if found is None:
        return [Finding(f"GPUs: nvidia-smi sees none here, {processes} wanted"), Finding(needs)]
    if len(found) < processes:
        few = f"launch.processes_per_node={processes}: nvidia-smi sees {len(found)} GPUs here, set it to that or less"
        return [Finding(few, wrong=True), Finding(needs)]
    seen = Finding(f"GPUs: {len(found)} x {found[0].name}, {processes} wanted")
    if estimate is None:
        return [seen, Finding(needs)]
    have = min(gpu.memory for gpu in found[:processes])
    needs += f"; it has {have / GIB:.3g} GiB"
    if estimate.states > have:
        more = "take more processes with launch.file=fsdp2 or fsdp2-nodes, or a smaller model"
        return [seen, Finding(f"{needs}: {more}", wrong=True)]
    tight = estimate.states + estimate.activations > have
    return [seen, Finding(needs + (": it will hardly fit, lower the micro-batch" if tight else ""))]


def disk(config: RunConfig, shards: int) -> list[Finding]:
    """Finding on the room for the checkpoints that stay and the one that is being written."""
    estimate = config.footprint(shards)
    place = next(folder for folder in (config.folder, *config.folder.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if estimate is None:
        return [Finding(f"disk: {free / GIB:.3g} GiB free in {place}; checkpoints are not estimated")]
    there = len(list((config.folder / "checkpoints").glob("step-*")))
    count = max(1, config.save.keep + 1 - there)
    text = f"disk: {count} checkpoints of {estimate.checkpoint / GIB:.3g} GiB, {free / GIB:.3g} GiB free in {place}"
    full = count * estimate.checkpoint > free
    return [Finding(f"{text}: lower save.keep, or name a larger disk by dir", True) if full else Finding(text)]


def port(config: RunConfig) -> list[Finding]:
    """Finding on the port at which the processes meet on this machine."""
    number = config.launch.port
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", number))
        except OSError:
            return [Finding(f"launch.port={number} is taken on this machine: give another (launch.port=...)", True)]
    return [Finding(f"port {number}: free")]


# -- the same on all machines ----------------------------------------------------------------------------------------


def fingerprint(config: RunConfig) -> dict[str, str]:
    """Name of this machine, and hashes of code, config and data, which are the same on all machines of a run."""
    house = sorted(file for folder in CODE for file in (ROOT / folder).rglob("*.py"))
    code = hashlib.sha256()
    for file in house:
        code.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    for own in user_files(config):
        code.update(f"{own} {user_code.digest(own)}\n".encode())
    return {"host": socket.gethostname(), "code": code.hexdigest(), "config": digest(config), "data": _data(config)}


def _data(config: RunConfig) -> str:
    """Hash of the manifest of the prepared data, which has those of its files; "none" where there is no manifest."""
    folder = to_dict(config).get("data", {}).get("folder")
    file = ROOT / folder / MANIFEST if folder else None
    return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else "none"


def agree(prints: Sequence[Mapping[str, Any]]) -> None:
    """ConfigError where processes, by rank, do not have the same code, config and data as rank 0."""
    first = prints[0]
    differ = []
    for rank, mine in enumerate(prints):
        if what := [key for key in first if key != "host" and mine[key] != first[key]]:
            differ.append(f"rank {rank} on {mine['host']} has another {' and '.join(what)}")
    if differ:
        raise ConfigError(
            f"not all processes have what rank 0 on {first['host']} has:\n  "
            + "\n  ".join(differ)
            + "\nBring the machines to the same commit, launch them with the same line, and prepare the data once."
        )
