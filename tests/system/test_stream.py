"""Rollouts of worker processes: the bits of PPO at staleness 0, of PPO with delayed weights at 1, whoever is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stepstack.config import ROOT
from stepstack.report import jsonl
from tests.system import fsdp, hooks
from tests.system.processes import LIMIT, Started, checkpoint, differences, ok, rows, stepstack, train, train_ranks

KILLED = -signal.SIGKILL
UNITS = ("rollout.generator.batch=8",)  # 4 units of one group a step
LAGGED = ("policy_loss.is_cap=2", "stream.staleness=1")
ARRIVING = ("stream.consume=stream", "advantage={type: gae, whiten: false}", "actor_updates=1", "critic_updates=1")
FEW = ("evals=[]", "eval_every=0", "save.every=1", "save.keep=10")


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


class Streamed:
    """A trainer and workers, each a process; the port stays when the trainer is started again."""

    def __init__(self, run: Path, *words: str):
        self.run, self.bind = run, free_port()
        self.words = (*UNITS, *FEW, "stream.workers=0", f"stream.bind={self.bind}", "stream.patience=20", *words)
        self.workers: list[Started] = []

    def trainer(self, *hooks: tuple) -> Started:
        return stepstack(self.run, *self.words, hooks=hooks)

    def worker(self, *hooks: tuple, words: tuple[str, ...] = ()) -> Started:
        token = self.run / "stream" / "token"
        wait_for(token.is_file)
        flags = ("--connect", self.bind, "--token-file", str(token))
        self.workers.append(stepstack(self.run, *flags, *self.words, *words, verb="generate", hooks=hooks))
        return self.workers[-1]


def wait_for(there) -> None:
    limit = time.monotonic() + LIMIT
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.02)


def same(run: Path, reference: Path, steps: int = 4) -> None:
    roles = checkpoint(reference, steps)["state"]["trainables"]
    assert differences(*[{role: checkpoint(r, steps)[role] for role in roles} for r in (run, reference)]) == []
    pairs = zip(rows(run), rows(reference), strict=True)
    for mine, theirs in pairs:
        shared = [k for k in theirs if not k.startswith("stream/")]
        assert {k: mine[k] for k in shared} == {k: theirs[k] for k in shared}


@pytest.fixture(scope="module")
def ppo(whole, tmp_path_factory) -> Path:
    """loops/ppo.py with the same waves."""
    return reference(whole, tmp_path_factory.mktemp("ppo") / "q")


@pytest.fixture(scope="module")
def delayed(whole, tmp_path_factory) -> Path:
    """loops/ppo.py whose generator has the weights of one step before."""
    run = tmp_path_factory.mktemp("delayed") / "q"
    return reference(whole, run, "policy_loss.is_cap=2", hooks=[(hooks.delay_weights,)])


@pytest.fixture(scope="module")
def arriving(whole, tmp_path_factory) -> Path:
    """A streaming consumer with one worker."""
    run = copied(whole, tmp_path_factory.mktemp("arriving") / "q")
    streamed = Streamed(run, *ARRIVING)
    trainer = streamed.trainer()
    streamed.worker()
    ok(trainer.wait())
    return run


def copied(whole: Path, run: Path) -> Path:
    shutil.copytree(whole / "base" / "model", run / "base" / "model")
    return run


def reference(whole: Path, run: Path, *words: str, hooks=()) -> Path:
    ok(train(copied(whole, run), *UNITS, *FEW, *words, hooks=hooks))
    return run


@pytest.mark.parametrize(("count", "weights"), [(1, "link"), (3, "folder")])
def test_at_staleness_0_the_bits_are_ppos_with_any_number_of_workers(new_run, ppo, count, weights):
    streamed = Streamed(new_run(), f"stream.weights={weights}")
    trainer = streamed.trainer()
    for _ in range(count):
        streamed.worker()
    ok(trainer.wait())
    for worker in streamed.workers:
        ok(worker.wait())
    same(streamed.run, ppo)
    timeline = jsonl.read(streamed.run / "stream" / "timeline.jsonl")
    made = [(row["step"], row["unit"]) for row in timeline if row["what"] == "generate"]
    assert sorted(made) == [(step, unit) for step in range(4) for unit in range(4)]


@pytest.mark.parametrize("policy", ["random", "steal", "longest", "history"])
def test_no_policy_of_dispatch_changes_a_bit(new_run, ppo, policy):
    streamed = Streamed(new_run(), f"stream.dispatch.type={policy}")
    trainer = streamed.trainer()
    for _ in range(2):
        streamed.worker()
    ok(trainer.wait())
    same(streamed.run, ppo)
    lengths = jsonl.read(streamed.run / "stream" / "lengths.jsonl")
    assert [len(row["tokens"]) for row in lengths] == [8] * 16
    saved = (streamed.run / "checkpoints" / "step-00000004" / "stream.json").read_text()
    assert all(f"[{row['problem']}, {sum(row['tokens'])}, 8]" in saved for row in lengths)


def test_a_resumed_run_may_have_another_policy(new_run, delayed):
    streamed = Streamed(new_run(), *LAGGED)
    trainer = streamed.trainer((hooks.signal_in_step, "actor", 2, signal.SIGKILL))
    streamed.worker()
    assert trainer.wait().code == KILLED
    streamed.words = (*streamed.words, "stream.dispatch.type=history")
    ok(streamed.trainer().wait())
    same(streamed.run, delayed)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_killed_or_hangs_changes_no_bit(new_run, ppo, number):
    streamed = Streamed(new_run(), "stream.patience=3")
    trainer = streamed.trainer()
    lost = streamed.worker((hooks.signal_in_unit, 5, int(number)))
    wait_for((streamed.run / "metrics.jsonl").is_file)
    streamed.worker()
    ok(trainer.wait())
    same(streamed.run, ppo)
    last = rows(streamed.run)[-1]
    assert (last["stream/redispatched"], last["stream/lost_workers"]) == (1, 1)
    lost.process.kill()


def test_the_trainers_own_workers_are_started_anew(new_run, ppo):
    """By the line that a user types: kill -9 of one in the middle of a unit."""
    run = new_run()
    trainer = stepstack(run, *UNITS, *FEW, "stream.workers=2")
    wait_for((run / "metrics.jsonl").is_file)
    wait_for(lambda: children(trainer))
    os.kill(children(trainer)[0], signal.SIGKILL)
    ok(trainer.wait())
    same(run, ppo)
    assert rows(run)[-1]["stream/lost_workers"] <= 1  # 0 where it had not joined yet


def children(started: Started) -> list[int]:
    """Process ids of `stepstack generate` below a trainer."""
    listed = Path(f"/proc/{started.process.pid}/task/{started.process.pid}/children")
    tasks = listed.parent.parent.glob("*/children") if started.process.is_alive() else ()
    return [
        int(pid)
        for file in tasks
        for pid in file.read_text().split()
        if "generate" in Path(f"/proc/{pid}/cmdline").read_text()
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_at_staleness_1_the_bits_are_those_of_delayed_weights(new_run, delayed, workers):
    streamed = Streamed(new_run(), *LAGGED)
    trainer = streamed.trainer()
    for _ in range(workers):
        streamed.worker()
    ok(trainer.wait())
    same(streamed.run, delayed)
    assert [row.get("stream/lag") for row in rows(streamed.run)] == [None, 0.0, 1.0, 1.0, 1.0]
    assert rows(streamed.run)[-1]["actor/mismatch"] > rows(streamed.run)[1]["actor/mismatch"]


@pytest.mark.parametrize("role_and_step", [("actor", 1), ("critic", 3)])
def test_a_killed_trainer_goes_on_to_the_same_bits_and_samples_nothing_twice(new_run, delayed, role_and_step):
    """At staleness 1 its buffer holds groups of the next step, which lie in the checkpoint; the worker reconnects."""
    streamed = Streamed(new_run(), *LAGGED, "stream.patience=6")
    trainer = streamed.trainer((hooks.signal_in_step, *role_and_step, signal.SIGKILL))
    streamed.worker()
    assert trainer.wait().code == KILLED
    ok(streamed.trainer().wait())
    same(streamed.run, delayed)
    [worker] = streamed.workers
    assert worker.wait().code == 0 or "no trainer at" in worker.wait().err  # it may come back when all is done


def test_a_checkpoint_with_a_part_of_the_next_step_finishes_that_step_by_the_old_weights(new_run, delayed):
    """A worker dies in the middle of the units of step 1, of which the checkpoint holds one group."""
    streamed = Streamed(new_run(), *LAGGED, "stream.patience=60")
    trainer = streamed.trainer((hooks.signal_after_save, 1, signal.SIGKILL))
    dying = streamed.worker((hooks.signal_in_unit, 6, signal.SIGKILL))
    assert trainer.wait().code == KILLED
    assert dying.wait().code == KILLED
    saved = json.loads((streamed.run / "checkpoints" / "step-00000001" / "stream.json").read_text())
    assert "0" in json.dumps(saved)
    trainer = streamed.trainer()
    streamed.worker()
    ok(trainer.wait())
    same(streamed.run, delayed)
    timeline = jsonl.read(streamed.run / "stream" / "timeline.jsonl")
    made = [(row["step"], row["unit"]) for row in timeline if row["what"] == "generate"]
    assert made.count((1, 0)) == 1


def test_a_clean_stop_keeps_the_workers_and_the_run_goes_on_to_the_same_bits(new_run, delayed):
    streamed = Streamed(new_run(), *LAGGED)
    trainer = stepstack(streamed.run, "--stop-after", "2", *streamed.words)
    worker = streamed.worker()
    assert "stopped after step 2 of 4" in ok(trainer.wait()).err
    ok(streamed.trainer().wait())
    ok(worker.wait())
    same(streamed.run, delayed)


def test_the_sum_on_arrival_is_the_gradient_of_ppo_in_a_piece(whole, arriving, tmp_path):
    """In the first step, which both begin with the same weights; other micro-batches, another order of sums."""
    plain = reference(whole, tmp_path / "plain" / "q", *ARRIVING[1:])
    mine, theirs = rows(arriving)[1], rows(plain)[1]
    for role in ("actor", "critic"):
        assert mine[f"{role}/grad_norm"] == pytest.approx(theirs[f"{role}/grad_norm"], rel=1e-5)
        assert mine[f"{role}/loss"] == pytest.approx(theirs[f"{role}/loss"], rel=1e-5, abs=1e-7)
    assert mine["reward"] == theirs["reward"]
    assert mine["tokens"] == theirs["tokens"]


@pytest.mark.parametrize("processes", [1, 2])
def test_groups_are_trained_as_they_end_each_of_them_once(whole, arriving, tmp_path, processes):
    """One worker is slow, so that units end out of their order; the first step's figures are those of the units in
    their order but for the order of sums."""
    streamed = Streamed(copied(whole, tmp_path / "q"), *ARRIVING[1:], "stream.consume=groups")
    with ThreadPoolExecutor() as pool:
        trainers = pool.submit(train_ranks, streamed.run, processes, *streamed.words)
        words = (f"launch.file={'cpu' if processes == 1 else 'cpu-ddp'}", f"launch.processes_per_node={processes}")
        for hook in ((hooks.slow_units, 0.3), None):
            streamed.worker(hook, words=words)
        for ended in trainers.result():
            ok(ended)
    mine, theirs = rows(streamed.run), rows(arriving)
    for name in ("actor/grad_norm", "critic/grad_norm", "actor/loss", "reward", "tokens"):
        assert mine[1][name] == pytest.approx(theirs[1][name], rel=1e-5, abs=1e-7)
    assert len(mine) == len(theirs)
    lengths = jsonl.read(streamed.run / "stream" / "lengths.jsonl")
    assert len({(row["step"], row["problem"]) for row in lengths}) == len(lengths) == 16


@pytest.mark.parametrize("workers", [2, 3])
def test_gradients_summed_on_arrival_have_the_same_bits_for_any_timing(new_run, arriving, workers):
    streamed = Streamed(new_run(), *ARRIVING)
    trainer = streamed.trainer()
    for number in range(workers):
        streamed.worker((hooks.slow_units, 0.05 * number))
    ok(trainer.wait())
    same(streamed.run, arriving)


@pytest.mark.parametrize("start", [train_ranks, fsdp.train], ids=["whole", "sharded"])
def test_two_training_processes_share_one_server(whole, tmp_path, start):
    """The first has the socket; each gets its part of every unit. The same bits as of two processes by loops/ppo.py,
    also where models are sharded (FSDP2) and all processes gather the weights that one sends."""
    plain, run = (copied(whole, tmp_path / name / "q") for name in ("plain", "streamed"))
    for ended in start(plain, 2, *UNITS, *FEW):
        ok(ended)
    streamed = Streamed(run)
    with ThreadPoolExecutor() as pool:
        ranks = pool.submit(start, run, 2, *streamed.words)
        streamed.worker(words=("launch.file=cpu-ddp", "launch.processes_per_node=2"))
        for ended in ranks.result():
            ok(ended)
    same(run, plain)


def test_responses_that_call_a_tool_are_streamed(whole, tmp_path):
    """A worker calls the tool; what it wrote reaches the trainer as the tool's, so that the bits are loops/ppo.py's."""
    tool = ("tool={type: calculator, open: '\\boxed{', close: '}', result: '({result})', calls: 2}",)
    plain = reference(whole, tmp_path / "plain" / "q", *tool)
    streamed = Streamed(copied(whole, tmp_path / "streamed" / "q"), *tool)
    trainer = streamed.trainer()
    streamed.worker()
    ok(trainer.wait())
    assert max(row.get("tool/calls", 0.0) for row in rows(plain)) > 0.5
    same(streamed.run, plain)


def test_a_ranker_is_made_of_a_runs_rollouts_and_orders_the_next_ones(new_run, ppo):
    run = new_run()
    lengths = [{"step": 0, "problem": number, "tokens": [3 + number % 7, 4 + number % 7]} for number in range(40)]
    jsonl.append(run / "stream" / "lengths.jsonl", *lengths)
    made = ok(stepstack(run, "--steps", "20", "stream.workers=0", verb="ranker").wait())
    assert re.search(r"ranker: recall of the longest fifth [01]\.\d\d on 8 held-out prompts of 40", made.out)
    streamed = Streamed(run, f"stream.dispatch={{type: length, ranker: {run / 'ranker'}}}")
    trainer = streamed.trainer()
    streamed.worker()
    ok(trainer.wait())
    same(run, ppo)
    sampled = [row for row in jsonl.read(run / "stream" / "lengths.jsonl") if row not in lengths]
    assert len(sampled) == 16
    assert all(len(row["tokens"]) == 8 for row in sampled)


def test_a_disk_without_room_for_the_weights_is_one_error_and_nothing_is_lost(new_run, ppo):
    streamed = Streamed(new_run())
    trainer = streamed.trainer((hooks.no_room_for_weights, 2))
    streamed.worker()
    ended = trainer.wait()
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert "weights of version 2 could not be written" in ended.err
    ok(streamed.trainer().wait())
    same(streamed.run, ppo)


def test_the_job_of_workers_types_their_line(tmp_path):
    """scripts/slurm_workers.sh, with a stand-in for srun, which no machine without SLURM has."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "srun").write_text("#!/bin/sh\necho $*\n")
    (tmp_path / "srun").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    script = [str(ROOT / "scripts" / "slurm_workers.sh"), "orz-32b-stream", "tcp://head:29700", "seed=1"]
    typed = subprocess.run(["bash", *script], env=env, capture_output=True, text=True, check=True).stdout.split()
    assert typed[1:4] == [".venv/bin/python", "-m", "stepstack"]
    assert typed[4:] == ["generate", "orz-32b-stream", "--connect", "tcp://head:29700", "seed=1"]


def test_a_worker_of_another_config_is_refused(new_run):
    streamed = Streamed(new_run())
    trainer = streamed.trainer()
    other = streamed.worker(words=("seed=9",)).wait()
    assert other.code == 2
    assert "refused this worker: it has another config than the trainer" in other.err
    streamed.worker()
    ok(trainer.wait())


DYNAMIC = ("advantage={type: grpo}", "rollout.dynamic_sampling={max_batches: 4}")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("stream.staleness=1",), "set policy_loss.is_cap, such as 2"),
        (("stream.consume=stream",), "advantage.whiten needs the advantages of the whole step"),
        (("stream.consume=stream", "advantage.whiten=false"), "set actor_updates and critic_updates to 1"),
        (
            ("stream.staleness=1", "policy_loss={is_cap: 2, old_from_sampler: 1e-3}"),
            "takes the sampler for the policy before its update",
        ),
        (("stream.consume=batch", "advantage={type: remax}"), "needs a greedy response besides"),
        (("stream.consume=batch", *DYNAMIC), "rollout.dynamic_sampling asks for further prompts"),
        (("stream.staleness=2",), "less than or equal to 1"),
        (("stream.dispatch.type=oracle",), "which only a simulation knows"),
        (("stream.dispatch={type: length}",), "ranker"),
    ],
)
def test_what_cannot_be_streamed_is_refused_by_name(tmp_path, words, why):
    ended = train(tmp_path / "q", *words, "--dry-run")
    assert ended.code == 2
    assert why in ended.err
