"""scripts/slurm.sh, submitted to a SLURM of two nodes that this test starts on the loopback."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepstack.config import ROOT
from tests.system.processes import MINI, checkpoint, rows

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.optin,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here: apt-get install slurm-wlm munge"),
]
MUNGE = {"socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
LIMIT = 300  # seconds for a job to come to where it is waited for
# Two daemons of one machine need names of their own, by which the launchers find each other. No cgroups: a container
# has none to give.
CONF = """
ClusterName=loopback
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=60
NodeName=127.0.0.1 Port={first} CPUs=1
NodeName=127.0.0.2 Port={second} CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[None]:
    """Its daemons, killed at the end; SLURM's tools find it by SLURM_CONF."""
    folder = tmp_path_factory.mktemp("slurm")
    controller, first, second = free_ports(3)
    conf, key = folder / "slurm.conf", folder / "munge.key"
    conf.write_text(
        CONF.format(controller=controller, first=first, second=second, user=getpass.getuser(), folder=folder)
    )
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munge = [f"--{name}={folder}/munge.{end}" for name, end in MUNGE.items()]
    daemons: list[subprocess.Popen] = []
    with pytest.MonkeyPatch.context() as patch, (folder / "daemons.log").open("w") as log:
        patch.setenv("SLURM_CONF", str(conf))
        for line in (
            ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "127.0.0.1"],
            ["slurmd", "-D", "-N", "127.0.0.2"],
        ):
            daemons.append(subprocess.Popen(line, stdout=log, stderr=log))
            time.sleep(1)  # each asks the one before
        yield
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(60)


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture
def submit(cluster, tmp_path) -> Callable[..., str]:
    """Submit the script from a folder with a `.venv`; the job's number."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    [port] = free_ports(1)

    def sbatch(run: Path, *words: str, nodes: int = 2) -> str:
        line = ["sbatch", "--parsable", f"--nodes={nodes}", str(ROOT / "scripts" / "slurm.sh"), MINI]
        line += [f"name={run.name}", f"dir={run.parent}", "launch.file=cpu-ddp", "launch.nodes=2"]
        line += [f"launch.port={port}", "advantage={type: grpo}", "eval_every=0", "save={every: 100000, keep: 2}"]
        done = subprocess.run([*line, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return sbatch


def state(job: str) -> tuple[str, str]:
    """SLURM's word for where the job stands, and its exit status."""
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    return re.search(r"JobState=(\w+)", shown)[1], re.search(r"ExitCode=(\d+):", shown)[1]


def until(true: Callable[[], bool], log: Path) -> None:
    limit = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < limit, log.read_text() if log.exists() else "it did not start"
        time.sleep(0.2)


def ended(job: str, folder: Path) -> tuple[tuple[str, str], str]:
    log = folder / f"slurm-{job}.out"
    until(lambda: state(job)[0] not in {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}, log)
    return state(job), log.read_text()


def test_a_job_of_two_nodes_saves_at_its_signal_and_the_same_line_goes_on(new_run, submit, tmp_path):
    """The signal is what SLURM sends ten minutes before the time limit: to every process of the job's steps."""
    run = new_run()
    job = submit(run, "steps=100000")
    until(lambda: (run / "metrics.jsonl").is_file() and len(rows(run)) > 3, tmp_path / f"slurm-{job}.out")
    subprocess.run(["scancel", "--signal=TERM", job], check=True)
    how, text = ended(job, tmp_path)
    assert how == ("COMPLETED", "0"), text
    assert "the same command goes on from there" in text
    assert "Traceback" not in text
    stopped = rows(run)[-1]["step"]
    assert checkpoint(run, stopped)["state"]["processes"] == 2

    how, text = ended(submit(run, f"steps={stopped + 2}"), tmp_path)
    assert how == ("COMPLETED", "0"), text
    assert f"step-{stopped:08d}" in text.partition("resumed from")[2]
    assert rows(run)[-1]["step"] == stopped + 2


def test_a_cancelled_job_saves_within_kill_wait(new_run, submit, tmp_path):
    run = new_run()
    job = submit(run, "steps=100000")
    until(lambda: (run / "metrics.jsonl").is_file() and len(rows(run)) > 3, tmp_path / f"slurm-{job}.out")
    subprocess.run(["scancel", job], check=True)
    how, text = ended(job, tmp_path)
    assert how[0] == "CANCELLED", text
    until(lambda: "the same command goes on from there" in (tmp_path / f"slurm-{job}.out").read_text(), run)
    assert checkpoint(run, rows(run)[-1]["step"])["state"]["processes"] == 2


def test_a_job_of_another_number_of_nodes_is_refused(new_run, submit, tmp_path):
    run = new_run()
    how, text = ended(submit(run, nodes=1), tmp_path)
    assert how == ("FAILED", "2"), text
    assert "launch.nodes is 2, but this SLURM job has 1: sbatch --nodes=2" in text
    assert not (run / "checkpoints").exists()
