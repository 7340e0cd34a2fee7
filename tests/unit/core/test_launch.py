"""The `accelerate launch` line: what it says, what accelerate makes of it, and that SIGTERM reaches who trains."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env

from stepstack.cli.main import main
from stepstack.config import CONFIGS, ROOT, ConfigError, Launch, RunConfig
from stepstack.core.launch import command, run

FILES = {"cpu", "cpu-ddp", "gpu", "ddp", "fsdp2", "fsdp2-nodes"}
SLURM = {"SLURM_NODEID": "3", "SLURM_JOB_NUM_NODES": "16", "SLURM_JOB_NODELIST": "gpu[03-18]"}


def config(**launch) -> RunConfig:
    return RunConfig(recipe="orz", launch=Launch(**launch))


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """SLURM's tool, as far as it is asked."""
    tool = tmp_path / "scontrol"
    tool.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[03-18]" ] && printf "gpu03\\ngpu04\\n"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


# -- the line --------------------------------------------------------------------------------------------------------


def test_one_process_on_the_cpu():
    expected = (
        f"accelerate launch --config_file {here('cpu')} --num_machines 1 --num_processes 1 --machine_rank 0 "
        "--main_process_port 29500 --num_cpu_threads_per_process 2 -m stepstack train orz-tiny "
        "--end-with-parent seed=1 name=x"
    )
    line = command(config(file="cpu", threads=2), "orz-tiny", ["seed=1", "name=x"], environ={})
    assert line == expected.split()


def test_sixteen_nodes_by_flags():
    line = command(config(file="fsdp2-nodes", nodes=16, processes_per_node=8), "orz-32b", rank=3, head="a", environ={})
    assert line[:2] == ["env", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600"]
    assert flags(line) >= {
        ("--num_machines", "16"),
        ("--num_processes", "128"),
        ("--machine_rank", "3"),
        ("--main_process_ip", "a"),
    }


def test_sixteen_nodes_by_slurm(scontrol):
    line = command(config(file="fsdp2-nodes", nodes=16, processes_per_node=8), "orz-32b", environ=SLURM)
    assert flags(line) >= {("--machine_rank", "3"), ("--main_process_ip", "gpu03")}


def test_flags_win_over_slurm(scontrol):
    line = command(config(file="ddp", nodes=2), "x", rank=1, head="b", environ=SLURM)
    assert flags(line) >= {("--machine_rank", "1"), ("--main_process_ip", "b")}


def test_one_machine_ignores_slurm():
    assert command(config(), "x", environ=SLURM) == command(config(), "x", environ={})


def test_several_cpu_processes_say_so_to_accelerate():
    assert "ACCELERATE_USE_CPU=true" in command(config(file="cpu-ddp", processes_per_node=2), "x", environ={})
    assert "ACCELERATE_USE_CPU=true" not in command(config(file="ddp", processes_per_node=2), "x", environ={})


def test_the_path_of_the_launch_file_holds_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(dict(flags(command(config(), "x", environ={})))["--config_file"]).is_file()


@pytest.mark.parametrize(
    ("launch", "flags", "environ", "words"),
    [
        ({"nodes": 2, "file": "ddp"}, {}, {}, "--rank N .0 to 1. and --head ADDRESS"),
        ({"nodes": 2, "file": "ddp"}, {"rank": 0}, {}, "--head ADDRESS"),
        ({"nodes": 2, "file": "ddp"}, {"rank": 2, "head": "a"}, {}, "--rank 2: launch.nodes is 2"),
        ({"nodes": 2, "file": "ddp"}, {"head": "a"}, SLURM, "this SLURM job has 16: sbatch --nodes=2"),
        ({"nodes": 1}, {"rank": 1}, {}, "launch.nodes is 1"),
        ({"file": "cpu", "processes_per_node": 2}, {}, {}, "set launch.file to cpu-ddp"),
        ({"file": "gpu", "processes_per_node": 2}, {}, {}, "set launch.file to ddp or fsdp2"),
        ({"file": "tpu"}, {}, {}, "launch.file=tpu: .* There are: cpu, cpu-ddp, ddp"),
    ],
)
def test_what_cannot_work_is_refused(launch, flags, environ, words):
    with pytest.raises(ConfigError, match=words):
        command(config(**launch), "x", environ=environ, **flags)


def test_a_node_list_without_scontrol_asks_for_the_head(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="say --head"):
        command(config(file="ddp", nodes=16), "x", environ=SLURM)


def test_dry_run_prints_a_line_for_the_shell(capsys):
    assert run(config(), "orz-tiny", ["stop=[a, b]"], dry_run=True, environ={}) == 0
    assert capsys.readouterr().out.endswith("-m stepstack train orz-tiny --end-with-parent 'stop=[a, b]'\n")


def test_dry_run_of_many_machines_shows_what_differs(capsys):
    run(config(file="fsdp2-nodes", nodes=16), "orz-32b", dry_run=True, environ={})
    assert "--machine_rank RANK --main_process_ip HEAD" in capsys.readouterr().out


def test_the_line_in_the_readme_is_the_one_that_is_printed(capsys):
    assert main(["launch", "orz-32b", "--rank", "0", "--head", "node0", "--dry-run"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line in (ROOT / "recipes" / "orz" / "README.md").read_text().splitlines()


# -- what accelerate makes of it -------------------------------------------------------------------------------------


def parsed(file: str, **launch):
    """accelerate's own arguments from our line, its launch file merged in."""
    line = command(config(file=file, port=free_port(), **launch), "x", rank=0, head="127.0.0.1", environ={})
    args = accelerate_launch.launch_command_parser().parse_args(line[line.index("launch") + 1 :])
    return accelerate_launch._validate_launch_command(args)[0]


def test_there_is_a_test_for_every_launch_file():
    assert {p.stem for p in (CONFIGS / "launch").glob("*.yaml")} == FILES


@pytest.mark.parametrize("file", sorted(FILES))
def test_accelerate_loads_the_file_and_leaves_precision_to_the_run(file):
    loaded = load_config_from_file(str(CONFIGS / "launch" / f"{file}.yaml"))
    assert loaded.mixed_precision is None
    assert loaded.use_cpu == file.startswith("cpu")


@pytest.mark.parametrize("file", sorted(FILES))
def test_accelerate_accepts_the_line(file):
    nodes = 2 if file == "fsdp2-nodes" else 1
    processes = 1 if file in ("cpu", "gpu") else 4
    args = parsed(file, nodes=nodes, processes_per_node=processes, threads=3)
    assert (args.num_machines, args.num_processes, args.num_cpu_threads_per_process) == (nodes, nodes * processes, 3)
    assert args.module
    assert args.training_script == "stepstack"
    assert args.training_script_args == ["train", "x", "--end-with-parent"]
    assert args.use_fsdp == file.startswith("fsdp2")
    assert args.multi_gpu == file.endswith("ddp")


@pytest.mark.parametrize("file", ["fsdp2", "fsdp2-nodes"])
def test_fsdp2_as_the_training_process_will_see_it(file):
    environment = prepare_multi_gpu_env(parsed(file, nodes=2 if "nodes" in file else 1, processes_per_node=8))
    assert environment["OMP_NUM_THREADS"] == "1"
    with patch_environment(**{k: v for k, v in environment.items() if k.startswith("FSDP_")}):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.backward_prefetch is None
    assert plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing


# -- real processes --------------------------------------------------------------------------------------------------

WORKER = """
import os, signal, sys, time, torch
from accelerate import Accelerator
accelerator = Accelerator()
model = accelerator.prepare(torch.nn.Linear(3, 1, bias=False))
model(torch.full((1, 3), accelerator.process_index + 1.0)).sum().backward()
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
line = f"{accelerator.num_processes} {accelerator.device.type} {next(model.parameters()).grad[0].tolist()}"
os.write(1, f"up {line} {torch.get_num_threads()}\\n".encode())  # in one piece: two processes share the file
while not stop:
    time.sleep(0.05)
time.sleep(1)  # the save, during which accelerate must not end
os.write(1, f"saved {len(stop)}\\n".encode())
"""
SUPERVISE = "import sys; from stepstack.core.launch import supervise; sys.exit(supervise(sys.argv[1:]))"


@pytest.fixture
def started(tmp_path):
    """Start a launcher with the worker above in place of `-m stepstack train`, wait until all processes are up."""
    script, out = tmp_path / "worker.py", tmp_path / "out"
    script.write_text(WORKER)

    def start(processes: int, **launch) -> tuple[subprocess.Popen, Path]:
        line = command(config(processes_per_node=processes, port=free_port(), **launch), "x", environ={})
        line = [*line[: line.index("-m")], str(script)]
        with out.open("w") as stdout:
            process = subprocess.Popen([sys.executable, "-c", SUPERVISE, *line], stdout=stdout, stderr=stdout, cwd=ROOT)
        deadline = time.monotonic() + 120
        while out.read_text().count("up ") < processes:
            assert process.poll() is None, out.read_text()
            assert time.monotonic() < deadline, out.read_text()
            time.sleep(0.1)
        time.sleep(1)  # the launcher looks for its workers twice a second
        return process, out

    return start


def test_sigterm_lets_one_process_save_and_ends_well(started):
    process, out = started(1, file="cpu")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert out.read_text().splitlines() == ["up 1 cpu [1.0, 1.0, 1.0] 1", "saved 1"]


def test_two_cpu_processes_average_gradients_and_save_on_sigterm(started):
    process, out = started(2, file="cpu-ddp")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    lines = [line for line in out.read_text().splitlines() if line.startswith(("up", "saved"))]
    assert lines == ["up 2 cpu [1.5, 1.5, 1.5] 1"] * 2 + ["saved 1"] * 2


def test_when_accelerate_is_killed_the_launcher_waits_for_the_save(started):
    process, out = started(1, file="cpu")
    [accelerate] = psutil.Process(process.pid).children()
    accelerate.kill()
    assert process.wait(60) == 128 + signal.SIGKILL
    assert "saved 1" in out.read_text()


FAILS = """
import os, signal, sys, time
if os.environ.get("RANK", "0") != "0":
    time.sleep(60)  # it would wait for the others
print("stepstack train: data.path: no such file", flush=True)
sys.exit(2) if sys.argv[1:] == ["exit"] else os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("file", "processes"), [("cpu", 1), ("cpu-ddp", 2)])
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_how_a_training_process_ends_is_said_in_one_line(tmp_path, file, processes, how):
    """Nothing follows an error that it has said itself; accelerate's traceback and torchrun's never."""
    (script := tmp_path / "worker.py").write_text(FAILS)
    line = command(config(file=file, processes_per_node=processes, port=free_port()), "x", environ={})
    words = [sys.executable, "-c", SUPERVISE, *line[: line.index("-m")], str(script), how]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=ROOT, timeout=120
    )
    first, *others = done.stdout.splitlines()
    assert first == "stepstack train: data.path: no such file"
    if how == "exit":
        assert (done.returncode, others) == (2, [])
    else:
        assert done.returncode == 128 + signal.SIGKILL
        [said] = others
        assert said.startswith("stepstack launch: training process 0 on ")
        assert said.endswith("was ended by SIGKILL; the same command on all machines goes on from the last checkpoint")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def here(file: str) -> Path:
    path = CONFIGS / "launch" / f"{file}.yaml"
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def flags(line: list[str]) -> set[tuple[str, str]]:
    return set(itertools.pairwise(line))
