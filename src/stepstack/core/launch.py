"""The typist of `accelerate launch`: a run's config in, one command line out. No torch.

The line is the public interface: it may be copied into any shell. ``run`` types it and stays beside it, because a
SIGTERM to `accelerate launch` itself ends it at once and leaves a single training process behind as an orphan, or gives
several of them 30 seconds to save. So the signal goes to the training processes, which save and end, and accelerate
ends after them. What ``run`` starts is accelerate's launcher in ``core.launcher``, which ends better.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from stepstack.config import CONFIGS, ConfigError, RunConfig
from stepstack.planning.pods import rankfile

# Seconds that torchrun waits for its processes to save when it gets the SIGTERM itself, as SLURM does it.
SAVE_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Node:
    """Which machine of the run this is: number from 0, and the address of number 0 (None: the run has one machine)."""

    rank: str
    head: str | None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """``file``: machines by rank (stepstack.planning.pods.rankfile); ``host``: which of them this is, None: any."""

    file: Path
    host: str | None


def command(
    config: RunConfig,
    name: str,
    overrides: Sequence[str] = (),
    *,
    rank: int | None = None,
    head: str | None = None,
    placement: Placement | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[str]:
    """The line to type on this machine. ``rank`` and ``head`` come from a placement, else from SLURM where they are not
    given.

    ConfigError: an unknown launch file, one that would quietly start another number of processes than the config says,
    several machines of which this one's rank or the head's address is not known, or a placement of others.
    """
    if placement:
        [node] = _placed(config.launch.nodes, placement, rank, head)
    else:
        node = _this_node(config.launch.nodes, rank, head, environ)
    return _line(config, name, overrides, node)


def run(
    config: RunConfig,
    name: str,
    overrides: Sequence[str] = (),
    *,
    rank: int | None = None,
    head: str | None = None,
    placement: Placement | None = None,
    dry_run: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Type the line and return its exit status; SIGTERM reaches the training processes.

    ``dry_run`` only prints it, with the words RANK and HEAD where they differ by machine and nothing names them. Of a
    placement that is asked of no machine it prints the line of each, under its name.
    """
    if not dry_run:
        host = Placement(placement.file, placement.host or socket.gethostname()) if placement else None
        return supervise(command(config, name, overrides, rank=rank, head=head, placement=host, environ=environ))
    if placement:
        for node in _placed(config.launch.nodes, placement, rank, head):
            print(f"# {node.name}\n{shlex.join(_line(config, name, overrides, node))}")
        return 0
    known = config.launch.nodes == 1 or "SLURM_NODEID" in environ
    if known or (rank is not None and head is not None):
        node = _this_node(config.launch.nodes, rank, head, environ)
    else:
        node = Node("RANK" if rank is None else str(rank), head or "HEAD")
    print(shlex.join(_line(config, name, overrides, node)))
    return 0


def _line(config: RunConfig, name: str, overrides: Sequence[str], node: Node) -> list[str]:
    launch = config.launch
    path = CONFIGS / "launch" / f"{launch.file}.yaml"
    file = _read(path)
    torchrun = file["distributed_type"] != "NO"
    if not torchrun and launch.processes > 1:
        several = "cpu-ddp" if file.get("use_cpu") else "ddp or fsdp2"
        raise ConfigError(
            f"launch.file={launch.file} starts one process, but launch.nodes x launch.processes_per_node is "
            f"{launch.processes}: set launch.file to {several}"
        )
    settings = [f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVE_SECONDS}"] if torchrun else []
    if torchrun and file.get("use_cpu"):
        settings.append("ACCELERATE_USE_CPU=true")  # see configs/launch/cpu-ddp.yaml
    flags = {
        "config_file": _from_here(path),
        "num_machines": launch.nodes,
        "num_processes": launch.processes,
        "machine_rank": node.rank,
        "main_process_ip": node.head,
        "main_process_port": launch.port,
        "num_cpu_threads_per_process": launch.threads,
    }
    words = [word for flag, value in flags.items() if value is not None for word in (f"--{flag}", str(value))]
    prefix = ["env", *settings] if settings else []
    return [*prefix, "accelerate", "launch", *words, "-m", "stepstack", "train", name, "--end-with-parent", *overrides]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        menu = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"launch.file={path.stem}: {path} does not exist. There are: {menu}")
    return yaml.safe_load(path.read_text())


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _this_node(nodes: int, rank: int | None, head: str | None, environ: Mapping[str, str]) -> Node:
    """This machine, by the flags or else by SLURM. No other place reads the environment of SLURM."""
    if nodes == 1:
        if rank not in (None, 0):
            raise ConfigError(f"--rank {rank}, but launch.nodes is 1: leave --rank out")
        return Node("0", None)
    job_nodes = environ.get("SLURM_JOB_NUM_NODES")
    if rank is None and "SLURM_NODEID" in environ:
        if job_nodes is not None and int(job_nodes) != nodes:
            raise ConfigError(f"launch.nodes is {nodes}, but this SLURM job has {job_nodes}: sbatch --nodes={nodes}")
        rank = int(environ["SLURM_NODEID"])
    if head is None and "SLURM_JOB_NODELIST" in environ:
        head = _first_host(environ["SLURM_JOB_NODELIST"])
    if rank is None or head is None:
        raise ConfigError(
            f"launch.nodes is {nodes}: say on each machine --rank N (0 to {nodes - 1}) and --head ADDRESS "
            "(where rank 0 runs), or start it under srun (scripts/slurm.sh)"
        )
    if not 0 <= rank < nodes:
        raise ConfigError(f"--rank {rank}: launch.nodes is {nodes}, so ranks are 0 to {nodes - 1}")
    return Node(str(rank), head)


def _placed(nodes: int, placement: Placement, rank: int | None, head: str | None) -> list[Node]:
    """The machines of a rank file, or the one that is asked for. The first is the head, unless its address is given."""
    if rank is not None:
        raise ConfigError(f"--rank {rank}: with --placement the rank is the place in {placement.file}; say --host NAME")
    names = rankfile.read(placement.file)
    if len(names) != nodes:
        raise ConfigError(
            f"{placement.file} has {len(names)} machines, but launch.nodes is {nodes}: make them the same"
        )
    if nodes == 1:
        raise ConfigError(f"{placement.file}: a run on one machine has no placement: leave --placement out")
    ranks = range(nodes) if placement.host is None else [rankfile.rank(names, placement.host, placement.file)]
    return [Node(str(i), head or names[0], names[i]) for i in ranks]


def _first_host(nodelist: str) -> str:
    """SLURM's compressed list (``gpu[03-18]``) is unfolded by SLURM's own tool."""
    try:
        process = subprocess.run(
            ["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"SLURM_JOB_NODELIST={nodelist}, but scontrol cannot unfold it ({error}): say --head"
        ) from None
    return process.stdout.split()[0]


def supervise(line: Sequence[str]) -> int:
    """Run the line with this interpreter's accelerate until its last training process has ended. Killed, it takes all
    of them with it: they save and end."""
    at = line.index("accelerate")
    child = psutil.Popen([*line[:at], sys.executable, "-m", "stepstack.core.launcher", *line[at + 2 :]])
    workers: list[psutil.Process] = []

    def forward(number: int, frame: object) -> None:
        for process in _children(child) or [child]:
            _send(process, number)

    previous = signal.signal(signal.SIGTERM, forward), signal.signal(signal.SIGINT, lambda *_: None)
    try:
        while True:
            try:
                status = child.wait(timeout=0.5)
                break
            except psutil.TimeoutExpired:
                workers = _children(child) or workers
        _outlive(workers)
    finally:
        signal.signal(signal.SIGTERM, previous[0])
        signal.signal(signal.SIGINT, previous[1])
    return 128 - status if status < 0 else status


def _children(process: psutil.Popen) -> list[psutil.Process]:
    """The training processes: accelerate starts nothing else."""
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it has just ended, which is what the signal is for


def _outlive(workers: Sequence[psutil.Process]) -> None:
    """accelerate was killed: have the processes that it left save and end, and wait for them."""
    left = [w for w in workers if _alive(w)]
    if not left:
        return
    print("launch: accelerate ended before its training processes; they save and end now", file=sys.stderr)
    for worker in left:
        _send(worker, signal.SIGTERM)
    while any(_alive(w) for w in left):
        psutil.wait_procs(left, timeout=0.5)


def _alive(process: psutil.Process) -> bool:
    """Not true of a zombie: where nobody reaps it, it would be waited for without end."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
