"""Two launchers on the loopback are two machines: one run, ended together, and mended by the same command."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from tests.system.hooks import recorder
from tests.system.processes import MINI, SMOOTH, checkpoint, distance, numbers, ok, rows, train

GRPO = ("advantage={type: grpo}", "actor_updates=2")
LONG = (*GRPO, "steps=100000", "eval_every=0", "save={every: 5, keep: 2}")
LIMIT = 300  # seconds for both machines to be up, on a machine that is busy with other things
GOES_ON = "the same command on all machines goes on from the last checkpoint"


class Node:
    """One launcher with its own output, and what runs below it."""

    def __init__(self, run: Path, port: int, words: Sequence[str]):
        self.log = run.parent / f"{run.name}-{port}-{words[-1]}.log"
        line = [sys.executable, "-m", "stepstack", "launch", MINI, f"name={run.name}", f"dir={run.parent}"]
        line += ["launch.file=cpu-ddp", "launch.nodes=2", f"launch.port={port}", *words]
        with self.log.open("w") as log:
            self.launcher = psutil.Popen(line, stdout=log, stderr=log)

    @property
    def trainer(self) -> psutil.Process:
        [launcher] = self.launcher.children()
        [trainer] = launcher.children()
        return trainer

    def end(self, seconds: float) -> str:
        """Wait for the launcher; what all of its processes have written."""
        try:
            self.launcher.wait(seconds)
        except psutil.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds} s:\n{self.log.read_text()}") from None
        return self.log.read_text()


@pytest.fixture
def start() -> Callable[..., list[Node]]:
    """Start the machines of a run; what is left of them at the end is killed."""
    nodes: list[Node] = []

    def launch(run: Path, *words: str, flags: Sequence[Sequence[str]] = ()) -> list[Node]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = flags or [("--head", "127.0.0.1", "--rank", rank) for rank in "01"]
        started = [Node(run, port, (*words, *own)) for own in flags]
        nodes.extend(started)
        return started

    yield launch
    for node in nodes:
        if node.launcher.poll() is None:
            for process in (*node.launcher.children(recursive=True), node.launcher):
                process.kill()
            node.launcher.wait()


def trains(run: Path, nodes: Sequence[Node], steps: int) -> None:
    """Wait until the run has gone on for ``steps`` more steps."""
    file, limit = run / "metrics.jsonl", time.monotonic() + LIMIT
    again, first = (run / "checkpoints").exists(), None
    while True:
        assert all(node.launcher.is_running() and node.launcher.poll() is None for node in nodes), "".join(
            node.log.read_text() for node in nodes
        )
        assert time.monotonic() < limit, nodes[0].log.read_text()
        if not again or "resumed from" in nodes[0].log.read_text():
            now = len(rows(run)) if file.is_file() else 0
            first = now if first is None else first
            if now >= first + steps:
                return
        time.sleep(0.1)


def test_two_nodes_of_a_placement_give_the_trajectory_of_one_process(new_run, start, tmp_path):
    one, two = new_run("one"), new_run("two")
    ok(train(one, *SMOOTH, *GRPO, hooks=[recorder(one)]))
    placement = tmp_path / "ranks.txt"
    placement.write_text("left\nright\n")
    hosts = [("--placement", str(placement), "--head", "127.0.0.1", "--host", name) for name in ("left", "right")]
    for node in start(two, *SMOOTH, *GRPO, flags=hosts):
        text = node.end(LIMIT)
        assert node.launcher.returncode == 0, text
    for a, b in zip(numbers(one), numbers(two), strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-5)
    assert distance(one, two, 4) < 5e-7


def test_sigterm_to_one_node_saves_and_ends_both_and_a_killed_process_ends_both(new_run, start):
    run = new_run()
    nodes = start(run, *LONG)
    trains(run, nodes, 3)
    nodes[1].launcher.send_signal(signal.SIGTERM)
    texts = [node.end(60) for node in nodes]
    assert [node.launcher.returncode for node in nodes] == [0, 0], texts
    assert "the same command goes on from there" in texts[0]
    stopped = rows(run)[-1]["step"]
    assert checkpoint(run, stopped)["state"]["processes"] == 2
    assert not [line for text in texts for line in text.splitlines() if "Traceback" in line]

    nodes = start(run, *LONG)
    trains(run, nodes, 6)
    nodes[1].trainer.kill()
    texts = [node.end(60) for node in nodes]
    assert f"step-{stopped:08d}" in texts[0].partition("resumed from")[2]
    before, _, after = texts[0].partition("Traceback")
    assert f"stepstack train: lost the connection to a process on machine 1 ({socket.gethostname()})" in before
    assert GOES_ON in before
    assert "ChildFailedError" not in after
    [line] = [line for line in texts[1].splitlines() if line.startswith("stepstack launch: ")]
    assert line.startswith("stepstack launch: training process 1 on ")
    assert "was ended by SIGKILL; " + GOES_ON in line
    assert "Traceback" not in texts[1]
    assert [node.launcher.returncode for node in nodes] == [1, 128 + signal.SIGKILL]


def test_the_head_node_dies(new_run, start):
    """All its processes at once, as at a loss of power; the other one ends by itself."""
    run = new_run()
    nodes = start(run, *LONG)
    trains(run, nodes, 3)
    for process in (*nodes[0].launcher.children(recursive=True), nodes[0].launcher):
        os.kill(process.pid, signal.SIGKILL)
    text = nodes[1].end(60)
    assert nodes[1].launcher.returncode == 1
    assert f"stepstack train: lost the connection to a process on machine 0 ({socket.gethostname()})" in text
    assert text.count("Traceback") == 1
    assert text.index("lost the connection") < text.index("Traceback")


def test_a_killed_launcher_takes_its_processes_with_it(new_run, start):
    """kill -9 of the launcher alone: what runs below it gets a SIGTERM, saves and ends. On one machine."""
    run = new_run()
    [node] = start(run, *LONG, "launch.file=cpu", "launch.nodes=1", flags=[()])
    trains(run, [node], 3)
    below = node.launcher.children(recursive=True)
    assert len(below) == 2
    node.launcher.kill()
    node.launcher.wait()
    assert psutil.wait_procs(below, timeout=60)[1] == []
    assert "the same command goes on from there" in node.log.read_text()
    assert checkpoint(run, rows(run)[-1]["step"])["state"]["processes"] == 1
