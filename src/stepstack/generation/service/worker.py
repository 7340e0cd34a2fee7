"""The worker's end: connect, pull a unit of work, send each group as it ends.

The socket belongs to the main thread, which gives signs of life and fetches weights while another thread samples.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from safetensors.torch import load_file

from stepstack.config import ConfigError
from stepstack.generation.service.weights import WeightFiles, file_digest, read_chunk, unpacked
from stepstack.generation.service.wire import WireMessage, frames, group_arrays, message
from stepstack.generation.types import EngineError, Generator, Prompt, Sampling

log = logging.getLogger(__name__)

POLL_MS = 20
BEAT = 1.0  # seconds between signs of life
Opened = tuple[Generator, Mapping[int, Prompt]]


@dataclass(frozen=True)
class Work:
    """A unit of work, with the file of its weights once that is here."""

    facts: Mapping[str, Any]
    ids: np.ndarray
    weights: Path


class Worker:
    """``open_sampler`` is given a folder with the model's small files, and returns the generator and the training
    prompts by index. ``sampling`` lacks only its seed. ``folder`` is the worker's own place for files."""

    def __init__(
        self,
        address: str,
        token: str,
        identity: Mapping[str, str],
        name: str,
        patience: float,
        sampling: Sampling,
        folder: Path,
        open_sampler: Callable[[Path], Opened],
    ):
        self.address, self.token, self.identity, self.name = address, token, dict(identity), name
        self.patience, self.sampling, self.folder, self.open_sampler = patience, sampling, folder, open_sampler
        self.files = WeightFiles(folder / "weights")
        self.instance: str | None = None  # of the trainer's process
        self.mode = "folder"
        self._opened = self._busy = False
        self._fetching: Mapping[str, Any] | None = None  # file of weights that is on its way
        self._fetched: list[bytes] = []  # chunks of the file of this sha256
        self._fetched_of = ""
        self._waiting: WireMessage | None = None  # work whose weights are not here yet
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[WireMessage | Exception] = queue.SimpleQueue()
        self._generator: Generator | None = None
        self._prompts: Mapping[int, Prompt] = {}
        self._version: int | None = None

    def run(self) -> None:
        """Work until the trainer says that it is over. EngineError where there is no trainer for ``patience`` seconds,
        or it refuses this worker; whatever sampling raises is told to the trainer, then raised."""
        threading.Thread(target=self._work_through, daemon=True, name="sampler").start()
        context = zmq.Context()
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 1000
        try:
            self.socket.connect(self.address)
        except zmq.ZMQError as error:
            raise ConfigError(f"--connect {self.address}: {error}: give tcp://HOST:PORT") from None
        try:
            self._talk()
        finally:
            self.socket.close()
            context.term()
            self.files.clear()

    # -- the main thread -------------------------------------------------------------------------------------------

    def _talk(self) -> None:
        heard, beaten = time.monotonic(), 0.0
        while True:
            now = time.monotonic()
            if now - heard > self.patience:
                raise EngineError(
                    f"no trainer at {self.address} for {self.patience:.0f} s: is it running, is a port open?"
                )
            if now - beaten > BEAT:
                beaten = now
                self._beat()
            while not self._said.empty():
                said = self._said.get()
                if isinstance(said, Exception):
                    self._tell(WireMessage("failed", {"why": f"{type(said).__name__}: {said}"}))
                    raise said
                self._tell(said)
            if self.socket.poll(POLL_MS):
                got = message(self.socket.recv_multipart())
                heard = time.monotonic()
                if got.kind == "end":
                    return
                self._heed(got)

    def _beat(self) -> None:
        if self.instance is None:
            facts = {"token": self.token, "identity": self.identity, "name": self.name}
            self.socket.send_multipart(frames(WireMessage("hello", facts)))
        else:
            self._tell(WireMessage("beat"))

    def _tell(self, what: WireMessage) -> None:
        if self.instance is not None:
            facts = {"instance": self.instance, **what.facts}
            self.socket.send_multipart(frames(WireMessage(what.kind, facts, what.arrays)))

    def _heed(self, got: WireMessage) -> None:
        match got.kind:
            case "welcome":
                self.instance, self.mode = got.facts["instance"], got.facts["weights"]
                if not self._opened:
                    self._opened = self._busy = True
                    self._jobs.put(lambda: self._open(got.arrays))
                elif not self._busy:
                    self._tell(WireMessage("idle"))
            case "unknown":  # another trainer's process, or one that gave this worker up
                self.instance, self._fetching = None, None  # chunks stay, for when the same file is asked for again
                if self._waiting is not None:
                    self._waiting, self._busy = None, False
            case "refused":
                raise EngineError(f"the trainer at {self.address} refused this worker: {got.facts['why']}")
            case "work":
                self._busy = True
                if self.mode == "folder" or got.facts["version"] in self.files.digests:
                    self._begin(got)
                else:
                    self._waiting = got
                    self._begin_fetching(got.facts)
            case "weights" if self.mode == "link" and self._waiting is None:  # fetched while the old ones sample
                self._begin_fetching(got.facts)
            case "gone" if self._fetching is not None and self._fetching["version"] == got.facts["version"]:
                self._fetching = None
                if self._waiting is not None and self._waiting.facts["version"] == got.facts["version"]:
                    self._waiting, self._busy = None, False
                    self._tell(WireMessage("idle"))
            case "chunk" if self._fetching is not None:
                self._take_chunk(got)

    def _begin(self, got: WireMessage) -> None:
        version = got.facts["version"]
        file = Path(got.facts["file"]) if self.mode == "folder" else self.files.path(version)
        self._jobs.put(lambda: self._sample(Work(got.facts, got.arrays["ids"], file)))

    def _begin_fetching(self, wanted: Mapping[str, Any]) -> None:
        """Fetch a file of weights, from where it was cut off; nothing where it is on its way."""
        if self._fetching is not None and self._fetching["sha256"] == wanted["sha256"]:
            return
        if self._fetched_of != wanted["sha256"]:
            self._fetched, self._fetched_of = [], wanted["sha256"]
        self._fetching = wanted
        self._fetch()

    def _fetch(self) -> None:
        assert self._fetching is not None
        base = max(self.files.digests, default=None)
        facts = {"version": self._fetching["version"], "chunk": len(self._fetched), "base": base}
        self._tell(WireMessage("fetch", facts))

    def _take_chunk(self, got: WireMessage) -> None:
        assert self._fetching is not None
        wanted = self._fetching
        if (got.facts["version"], got.facts["chunk"]) != (wanted["version"], len(self._fetched)):
            return  # asked for before the trainer gave up this worker
        base = got.facts["base"]
        before = None if base is None else read_chunk(self.files.path(base), len(self._fetched))
        self._fetched.append(unpacked(got.arrays["content"].tobytes(), before))
        if len(self._fetched) < wanted["chunks"]:
            self._fetch()
            return
        partial = self.folder / "received.partial"
        partial.write_bytes(b"".join(self._fetched))
        self.files.receive(partial, wanted["version"], wanted["sha256"])
        self._tell(WireMessage("verified", {"version": wanted["version"]}))
        self._fetching, self._fetched, self._fetched_of = None, [], ""
        if self._waiting is not None:
            work, self._waiting = self._waiting, None
            self._begin(work)

    # -- the sampling thread ---------------------------------------------------------------------------------------

    def _work_through(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except Exception as error:  # whatever it is, the main thread has to raise it
                self._said.put(error)
                return
            self._busy = False
            self._said.put(WireMessage("idle"))

    def _open(self, sent: Mapping[str, np.ndarray]) -> None:
        source = self.folder / "source"
        source.mkdir(parents=True, exist_ok=True)
        for name, content in sent.items():
            (source / Path(name).name).write_bytes(content.tobytes())
        self._generator, self._prompts = self.open_sampler(source)

    def _sample(self, work: Work) -> None:
        assert self._generator is not None
        facts = work.facts
        prompts = self._prompts_of(facts["problems"], work.ids)
        if self._version != facts["version"]:
            self._load(work)
        where = {key: facts[key] for key in ("instance", "step", "unit", "attempt")}
        for group in self._generator.generate(prompts, self.sampling.replace(seed=facts["seed"])):
            problem = group.prompt.problem.index
            if problem in facts["wanted"]:
                described, arrays = group_arrays(group)
                self._said.put(WireMessage("group", {**where, "problem": problem, **described}, arrays))
        self._said.put(WireMessage("done", where))

    def _load(self, work: Work) -> None:
        """Weights of another version. EngineError where the file is not what the trainer wrote."""
        assert self._generator is not None
        version, sha256 = work.facts["version"], work.facts["sha256"]
        if not work.weights.is_file():
            raise EngineError(f"{work.weights} is not here: share the run's folder, or set stream.weights=link")
        if (found := file_digest(work.weights)) != sha256:
            raise EngineError(f"{work.weights} is {found[:12]}, the trainer wrote {sha256[:12]}: is the disk full?")
        self._generator.load(load_file(work.weights).items(), version)
        self._version = version
        self._said.put(WireMessage("verified", {"version": version}))

    def _prompts_of(self, problems: Sequence[int], ids: np.ndarray) -> list[Prompt]:
        """The prompts of a unit. EngineError where this worker's data has others."""
        if missing := [problem for problem in problems if problem not in self._prompts]:
            raise EngineError(f"problem {missing[0]} is not in this worker's data: prepare the same as the trainer's")
        prompts = [self._prompts[problem] for problem in problems]
        if [token for prompt in prompts for token in prompt.ids] != ids.tolist():
            raise EngineError(f"the prompts of problems {list(problems)[:3]} … are other tokens than the trainer's")
        return prompts
