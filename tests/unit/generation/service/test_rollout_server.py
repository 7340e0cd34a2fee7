"""A server and workers over real sockets: what they hand over, and what either does when the other misbehaves."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
import torch
import zmq

from stepstack.config import ConfigError
from stepstack.core import hf
from stepstack.generation.config import HfConfig
from stepstack.generation.hf import HfGenerator
from stepstack.generation.service.config import StreamConfig
from stepstack.generation.service.trainer import RolloutServer
from stepstack.generation.service.wire import WireMessage, frames, message
from stepstack.generation.service.worker import Worker
from stepstack.generation.types import EngineError, Sampling
from stepstack.models.lm import tiny
from tests import tools

TOKENIZER = tiny.tokenizer()
LM = tools.qwen2(len(TOKENIZER))
PROMPTS = tools.prompts([3, 4, 5, 6, 7, 8], vocab=90)
SAMPLING = Sampling(n=2, max_tokens=8, seed=5)
PARTS = [PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:]]
IDENTITY = {"config": "c", "code": "d", "data": "e"}
WEIGHTS = dict(LM.named_parameters())


@contextlib.contextmanager
def serving(folder, **changes):
    server = RolloutServer(StreamConfig(workers=0, **{"patience": 2.0, **changes}), folder / "stream", IDENTITY, None)
    try:
        yield server
    finally:
        server.close()


class Started:
    """A worker in a thread of its own, with the error that ended it."""

    def __init__(self, server: RolloutServer, folder, prompts=PROMPTS, **changes):
        self.error: Exception | None = None
        settings = {"token": server.token, "identity": IDENTITY, "name": folder.name, "patience": 2.0} | changes
        address = settings.pop("address", server.address)
        empty = hf.without_memory(
            lambda: tiny.qwen2(len(TOKENIZER), hidden=16, layers=2, intermediate=32, seed=0, max_length=512)
        )
        generator = HfGenerator(empty, TOKENIZER, HfConfig(), torch.device("cpu"))
        opened = generator, {prompt.problem.index: prompt for prompt in prompts}
        how = {"sampling": SAMPLING, "folder": folder, "open_sampler": lambda _: opened}
        self.worker = Worker(address=address, **how, **settings)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except (EngineError, ConfigError, ValueError) as error:
            self.error = error


class Raw:
    """A socket that says what a test wants."""

    def __init__(self, server: RolloutServer):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(server.address)

    def say(self, kind: str, facts=(), arrays=()) -> None:
        self.socket.send_multipart(frames(WireMessage(kind, dict(facts), dict(arrays))))

    def hear(self, kind: str) -> WireMessage:
        while self.socket.poll(5000):
            got = message(self.socket.recv_multipart())
            if got.kind == kind:
                return got
        raise AssertionError(f"nobody said {kind}")

    def join(self, server: RolloutServer) -> str:
        self.say("hello", {"token": server.token, "identity": IDENTITY, "name": "raw"})
        return self.hear("welcome").facts["instance"]


def expected(parts=PARTS) -> list[list]:
    local = tools.generator(LM, TOKENIZER)
    return [sorted(local.generate(part, SAMPLING), key=lambda g: g.prompt.problem.index) for part in parts]


def collected(server: RolloutServer, step=0, parts=PARTS) -> list[list]:
    got = [server.unit(step, number) for number in range(len(parts))]
    return [sorted(unit, key=lambda g: g.prompt.problem.index) for unit in got]


@pytest.mark.parametrize("mode", ["folder", "link"])
@pytest.mark.parametrize("count", [1, 2])
def test_groups_are_those_of_the_generator_in_this_process(tmp_path, mode, count):
    with serving(tmp_path, weights=mode) as server:
        server.publish(WEIGHTS, 0)
        server.admit(0, 0, PARTS, SAMPLING)
        workers = [Started(server, tmp_path / f"w{number}") for number in range(count)]
        assert collected(server) == expected()
        server.trained(0)
        figures = server.figures()
        assert (figures["stream/redispatched"], figures["stream/late"]) == (0, 0)
        assert (figures["stream/sent_mb"] > 0) == (mode == "link")
    for worker in workers:
        worker.thread.join(10)
        assert worker.error is None


def test_groups_can_be_taken_as_they_end_each_of_them_once(tmp_path):
    with serving(tmp_path) as server:
        server.publish(WEIGHTS, 0)
        server.admit(0, 0, PARTS, SAMPLING)
        Started(server, tmp_path / "w")
        taken = {}
        while len(taken) < len(PROMPTS):
            new = {group.prompt.problem.index: group for group in server.ended(0, taken)}
            assert new
            assert not new.keys() & taken.keys()
            taken |= new
        assert taken == {group.prompt.problem.index: group for unit in expected() for group in unit}


def test_the_link_sends_differences_and_keeps_to_its_rate(tmp_path):
    with serving(tmp_path, weights="link", rate=0.5) as server:
        sizes = []
        Started(server, tmp_path / "w")
        for version in (0, 1):
            moved = {name: value.detach() * (1 + 1e-6 * version) for name, value in WEIGHTS.items()}
            server.publish(moved, version)
            server.admit(version, version, PARTS, SAMPLING)
            began = time.monotonic()
            groups = collected(server, step=version)
            assert {rollout.version for unit in groups for group in unit for rollout in group.rollouts} == {version}
            sizes.append(server.sent_bytes - sum(sizes))
            assert time.monotonic() - began >= 0.9 * sizes[-1] / 0.5e6
            server.trained(version)
        assert sizes[1] < 0.6 * sizes[0]


def test_a_link_that_was_cut_goes_on_with_the_chunks_that_are_missing(tmp_path, monkeypatch):
    """The trainer gives the worker up in the middle of a file, and takes it again."""
    monkeypatch.setattr("stepstack.generation.service.weights.CHUNK_BYTES", 4096)
    with serving(tmp_path, weights="link", rate=0.05, patience=20.0) as server:
        server.publish(WEIGHTS, 0)
        server.admit(0, 0, PARTS, SAMPLING)
        worker = Started(server, tmp_path / "w", patience=20.0)
        while len(worker.worker._fetched) < 3:
            time.sleep(0.01)
        with server._changed:
            [(sender, lost)] = server.workers.items()
            server._lose(sender, lost)
        assert collected(server) == expected()
        assert server.sent_bytes < 1.2 * server.weights.path(0).stat().st_size


def test_weights_travel_while_the_worker_samples_by_the_ones_before(tmp_path):
    """A version that no work asks for yet is announced, fetched and checked all the same."""
    with serving(tmp_path, weights="link") as server:
        server.publish(WEIGHTS, 0)
        server.admit(0, 0, PARTS, SAMPLING)
        Started(server, tmp_path / "w")
        assert collected(server) == expected()
        server.publish(WEIGHTS, 1)
        [worker] = server.workers.values()
        limit = time.monotonic() + 10
        while 1 not in worker.verified:
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert 1 not in server.buffer.versions_wanted()


def test_restored_work_waits_until_its_step_is_admitted_again(tmp_path):
    """A worker may be back before a killed trainer knows the prompts of the step that its checkpoint holds."""
    with serving(tmp_path / "first") as server:
        server.publish(WEIGHTS, 0)
        server.admit(0, 0, PARTS, SAMPLING)
        state = server.state()
    with serving(tmp_path / "second", patience=20.0) as server:
        server.publish(WEIGHTS, 0)
        server.restore(state)
        Started(server, tmp_path / "w", patience=20.0)
        while not any(worker.idle for worker in list(server.workers.values())):
            time.sleep(0.01)
        time.sleep(0.2)
        assert server.buffer.waiting_groups() == len(PROMPTS)
        server.admit(0, 0, PARTS, SAMPLING)
        assert collected(server) == expected()


def test_a_worker_that_falls_silent_is_replaced_and_its_late_groups_are_refused(tmp_path):
    with serving(tmp_path) as server:
        server.publish(WEIGHTS, 0)
        server.admit(0, 0, PARTS, SAMPLING)
        raw = Raw(server)
        instance = raw.join(server)
        raw.say("idle", {"instance": instance})
        work = raw.hear("work")
        Started(server, tmp_path / "w")
        assert collected(server) == expected()
        assert server.figures()["stream/redispatched"] == 1
        assert server.figures()["stream/lost_workers"] == 1
        where = {key: work.facts[key] for key in ("instance", "step", "unit", "attempt")}
        facts = {"problem": 0, "text": ["a", "b"], "finish": ["stop"] * 2, "version": [0, 0]}
        arrays = {"lengths": np.array([1, 1]), "ids": np.array([1, 1]), "logprobs": np.array([-1.0, -1.0])}
        raw.say("group", where | facts, arrays)
        raw.hear("unknown")
        assert server.figures()["stream/late"] == 1


def test_a_trainers_process_does_not_take_groups_for_the_one_before(tmp_path):
    with serving(tmp_path) as server:
        server.publish(WEIGHTS, 0)
        server.admit(0, 0, PARTS, SAMPLING)
        raw = Raw(server)
        raw.join(server)
        raw.say("group", {"instance": "another", "step": 0, "unit": 0, "attempt": 1, "problem": 0})
        raw.hear("unknown")
        assert server.buffer.ended_groups() == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"token": "guess"}, "its token is not the trainer's"),
        ({"identity": IDENTITY | {"config": "x"}}, "it has another config than the trainer"),
        ({"identity": {}}, "another config and code and data"),
    ],
)
def test_who_is_not_of_the_run_is_refused_by_name(tmp_path, changes, why):
    with serving(tmp_path) as server:
        worker = Started(server, tmp_path / "w", **changes)
        worker.thread.join(10)
        assert why in str(worker.error)
        assert server.figures()["stream/refused"] == 1
        assert server.figures()["stream/workers"] == 0


def test_foreign_messages_are_counted_and_nothing_breaks(tmp_path):
    with serving(tmp_path) as server:
        raw = Raw(server)
        raw.socket.send_multipart([b"GET / HTTP/1.1", b"Host: x"])
        assert "no message of stepstack" in raw.hear("refused").facts["why"]
        instance = raw.join(server)
        raw.say("fetch", {"instance": instance, "version": 7, "chunk": 0, "base": None})
        assert raw.hear("gone").facts["version"] == 7
        server.publish(WEIGHTS, 0)
        for facts in ({"version": 0, "chunk": 9, "base": None}, {"chunk": "x"}):
            raw.say("fetch", facts | {"instance": instance})
            raw.hear("refused")
        server.admit(0, 0, PARTS, SAMPLING)
        Started(server, tmp_path / "w")
        assert collected(server) == expected()


def test_a_group_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    long = tools.prompts([600], vocab=90)
    with serving(tmp_path) as server:
        server.publish(WEIGHTS, 0)
        server.admit(0, 0, [long], SAMPLING)
        worker = Started(server, tmp_path / "w", prompts=long)
        with pytest.raises(EngineError, match=r"worker w: .*prompt 0 has 600 tokens and leaves no room"):
            server.unit(0, 0)
        worker.thread.join(10)
        assert "leaves no room" in str(worker.error)


def test_a_worker_with_other_data_says_so(tmp_path):
    with serving(tmp_path) as server:
        server.publish(WEIGHTS, 0)
        server.admit(0, 0, PARTS, SAMPLING)
        Started(server, tmp_path / "w", prompts=tools.prompts([3, 4, 5, 6, 7, 8], vocab=90, seed=1))
        with pytest.raises(EngineError, match="are other tokens than the trainer's"):
            server.unit(0, 0)


def test_weights_that_changed_on_the_disk_are_not_loaded(tmp_path):
    with serving(tmp_path) as server:
        server.publish(WEIGHTS, 0)
        content = bytearray(server.weights.path(0).read_bytes())
        content[-1] ^= 1
        server.weights.path(0).write_bytes(content)
        server.admit(0, 0, PARTS, SAMPLING)
        Started(server, tmp_path / "w")
        with pytest.raises(EngineError, match=r"0\.safetensors is .*, the trainer wrote"):
            server.unit(0, 0)


def test_no_worker_within_patience(tmp_path):
    with serving(tmp_path, patience=0.3) as server:
        server.publish(WEIGHTS, 0)
        server.admit(0, 0, PARTS, SAMPLING)
        with pytest.raises(EngineError, match=r"no worker for 0 s: start one with `stepstack generate NAME"):
            server.unit(0, 0)


def test_no_trainer_within_patience(tmp_path):
    with serving(tmp_path) as server:
        address = server.address
        worker = Started(server, tmp_path / "w", address=address.rpartition(":")[0] + ":9", patience=0.5)
        worker.thread.join(10)
    assert "no trainer at tcp://127.0.0.1:9" in str(worker.error)


def test_two_trainers_on_one_port(tmp_path):
    with serving(tmp_path) as server, pytest.raises(EngineError, match=r"cannot be bound .*give another port"):
        RolloutServer(StreamConfig(bind=server.address), tmp_path / "other", IDENTITY, None)


def test_the_token_is_the_owners_alone(tmp_path):
    with serving(tmp_path):
        assert (tmp_path / "stream" / "token").stat().st_mode & 0o077 == 0
