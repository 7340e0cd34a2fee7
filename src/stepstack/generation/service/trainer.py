"""The trainer's end: one socket, a buffer of work, the weights, and a thread that answers the workers."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from torch import Tensor

from stepstack.generation.service import weights as files
from stepstack.generation.service.buffer import Lease, WorkBuffer, WorkUnit
from stepstack.generation.service.config import LENGTHS, TIMELINE, StreamConfig
from stepstack.generation.service.dispatch import Rank, UnitDispatch
from stepstack.generation.service.local import LocalWorkers
from stepstack.generation.service.wire import WireError, WireMessage, frames, group_of, message
from stepstack.generation.types import EngineError, Group, Prompt, Sampling
from stepstack.report import jsonl

log = logging.getLogger(__name__)

POLL_MS = 20
SOURCE_LIMIT = 64 * 2**20  # bytes of a file of the model's folder that is sent; weights are not among them
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


@dataclass
class ConnectedWorker:
    """A worker that said hello. ``seen``: when it last said something; ``idle``: it asks for work; ``groups`` and
    ``tokens`` are those of the unit that it has; ``verified`` holds the versions whose weights arrived there whole."""

    name: str
    seen: float
    idle: bool = False
    unit: WorkUnit | None = None
    began: float = 0.0  # time of day
    started: float = 0.0  # by the monotonic clock
    tokens: int = 0
    groups: int = 0
    verified: set[int] = field(default_factory=set)


class RolloutServer:
    """Hands units of work to workers that connect, and collects their groups. Made by process 0 of a trainer.

    Its socket lives in a thread; the methods are called by the trainer's main thread and raise what went wrong there.
    """

    def __init__(
        self,
        cfg: StreamConfig,
        folder: Path,
        identity: Mapping[str, str],
        source: Path | None,
        local: LocalWorkers | None = None,
        rank: Rank | None = None,
    ):
        """``folder``: stream/ of the run, where address, token and weights lie. ``identity``: what a worker must have
        alike, by name. ``source``: folder of the model, whose files but the weights are sent to workers.
        ``local``: worker processes of this machine. ``rank``: estimates of the lengths of prompts, where the dispatch
        has a ranker.

        EngineError where the address cannot be bound."""
        self.cfg, self.folder, self.identity, self.source = cfg, folder, dict(identity), source
        self.dispatch = UnitDispatch(cfg.dispatch, rank)
        self.buffer: WorkBuffer[tuple[dict, dict]] = WorkBuffer(cfg.staleness + 1, self._choose)
        folder.mkdir(parents=True, exist_ok=True)
        self.weights = files.WeightFiles(folder / "weights")
        self.token = _token(folder / "token")
        self.instance = secrets.token_hex(8)  # tells this process from one that was killed
        self.sampling: dict[int, Sampling] = {}
        self.prompts: dict[int, dict[int, Prompt]] = {}
        self.workers: dict[bytes, ConnectedWorker] = {}
        self.refused = self.lost = self.arrived = 0
        self.sent_bytes, self._link_free = 0, 0.0
        self._later: list[tuple[float, bytes, WireMessage]] = []  # held back by the link's rate, until then
        self._busy, self._looked = 0.0, time.monotonic()
        self._announced: int | None = None  # a version that workers do not know of yet
        self.local = local
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._closing = self._over = False
        self._last_alive = time.monotonic()
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        try:
            self.socket.bind(cfg.bind)
        except zmq.ZMQError as error:
            self.context.destroy(linger=0)
            raise EngineError(
                f"stream.bind={cfg.bind} cannot be bound ({error}): another trainer has it, or it is no address of "
                "this machine: give another port"
            ) from None
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        jsonl.write_json_atomic(folder / "address.json", {"address": self.address, "token_file": str(folder / "token")})
        if local is not None:
            local.start(self.address, folder / "token")
        self._thread = threading.Thread(target=self._serve, daemon=True, name="rollout-server")
        self._thread.start()

    # -- the trainer's main thread ---------------------------------------------------------------------------------

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Make a version ready for workers, who fetch it over a link while they sample by the one before."""
        prepared = self.weights.prepare(weights, version)
        with self._changed:
            self.weights.keep(prepared, version)
            self._announced = version

    def admit(self, step: int, version: int, parts: Sequence[Sequence[Prompt]], sampling: Sampling) -> None:
        """Work of a step, ``parts`` being the prompts that decode together."""
        units = [
            WorkUnit(step, number, version, tuple(prompt.problem.index for prompt in part))
            for number, part in enumerate(parts)
        ]
        self.dispatch.admit([prompt for part in parts for prompt in part])  # a ranker's pass, which must not block
        with self._changed:
            self.buffer.admit(units)
            self.sampling[step] = sampling
            self.prompts[step] = {prompt.problem.index: prompt for part in parts for prompt in part}

    def unit(self, step: int, number: int) -> list[Group]:
        """The groups of a unit, once all are there. EngineError where a worker could not make one, or where no worker
        is there for ``patience`` seconds."""
        with self._changed:
            found = self._once(lambda: self.buffer.unit(step, number))
            return [self._group(step, facts, arrays) for facts, arrays in found]

    def ended(self, step: int, known: Collection[int] = (), least: int = 1) -> list[Group]:
        """The groups of a step that have ended, of other problems than ``known``, once there are ``least``, whichever
        units they are of. EngineError as ``unit``."""

        def look() -> list[tuple[dict, dict]] | None:
            new = [group for problem, group in self.buffer.ended(step).items() if problem not in known]
            return new if len(new) >= least else None

        with self._changed:
            found = self._once(look)
            return [self._group(step, facts, arrays) for facts, arrays in found]

    def _once(self, look: Callable[[], list[tuple[dict, dict]] | None]) -> list[tuple[dict, dict]]:
        """Wait until ``look`` finds something, and return it."""
        while (found := look()) is None:
            if self._error is not None:
                raise self._error
            self._changed.wait(1.0)
        return found

    def _group(self, step: int, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Group:
        return group_of(self.prompts[step][facts["problem"]], facts, arrays)

    def trained(self, step: int) -> None:
        with self._changed:
            self.buffer.trained(step)
            del self.sampling[step], self.prompts[step]

    def figures(self) -> dict[str, float]:
        """Counts since the run began in this process, what is in the buffer, and ``worker_idle``, the share of the
        workers' time since the last call in which they had no unit."""
        with self._changed:
            now, began = time.monotonic(), self._looked
            units = [worker for worker in self.workers.values() if worker.unit is not None]
            busy = self._busy + sum(now - max(worker.started, began) for worker in units)
            self._busy, self._looked = 0.0, now
            whole = max(1e-9, (now - began) * len(self.workers))
            return {
                "stream/worker_idle": min(1.0, max(0.0, 1 - busy / whole)),
                "stream/workers": float(len(self.workers)),
                "stream/ended": float(self.buffer.ended_groups()),
                "stream/waiting": float(self.buffer.waiting_groups()),
                "stream/redispatched": float(self.buffer.redispatched),
                "stream/late": float(self.buffer.late),
                "stream/lost_workers": float(self.lost),
                "stream/refused": float(self.refused),
                "stream/sent_mb": self.sent_bytes / 1e6,
            }

    def state(self) -> dict[str, Any]:
        """The buffer, for a checkpoint: units with the groups that have ended, and the lengths that were seen."""
        with self._changed:
            units = [
                [unit.step, unit.number, unit.version, list(unit.problems), list(map(_stored, groups.values()))]
                for unit, groups in self.buffer.state()
            ]
            unfinished = sorted(self.buffer.versions_wanted())
            lengths = self.dispatch.state()
            return {"next_step": self.buffer.next_step, "units": units, "unfinished": unfinished, "lengths": lengths}

    def restore(self, state: Mapping[str, Any]) -> None:
        units = []
        for step, number, version, problems, groups in state["units"]:
            restored = [_restored(group) for group in groups]
            unit = WorkUnit(step, number, version, tuple(problems))
            units.append((unit, {facts["problem"]: (facts, arrays) for facts, arrays in restored}))
        with self._changed:
            self.buffer.restore(units, state["next_step"])
            self.dispatch.restore(state["lengths"])

    def close(self, over: bool = True) -> None:
        """Free the port. ``over``: whether the workers are told to end; else they wait for a trainer that goes on, as
        long as ``patience`` says, but for the trainer's own, which end with it."""
        self._over, self._closing = over, True
        self._thread.join()
        self.context.destroy(linger=1000)
        if self.local is not None:
            self.local.stop(over)
        self.weights.clear()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._closing:
                if self.socket.poll(POLL_MS):
                    sender, *parts = self.socket.recv_multipart()
                    with self._changed:
                        self._receive(sender, parts)
                now = time.monotonic()
                with self._changed:
                    self._announce()
                    self._look_after_workers(now)
                    self._hand_out(now)
                    while self._later and self._later[0][0] <= now:
                        self._send(*self._later.pop(0)[1:])
            for sender in self.workers if self._over else ():
                self._send(sender, WireMessage("end"))
        except Exception as error:  # whatever it is, the main thread has to raise it
            with self._changed:
                self._fail(error)
        finally:
            self.socket.close(linger=1000)

    def _announce(self) -> None:
        """Tell the workers of a new version."""
        if self._announced is not None:
            facts = self._file_of(self._announced)
            self._announced = None
            for sender in self.workers:
                self._send(sender, WireMessage("weights", facts))

    def _file_of(self, version: int) -> dict[str, Any]:
        """Facts of a version that a worker needs to read or to fetch it."""
        file = self.weights.path(version)
        digest = self.weights.digests[version]
        return {"version": version, "sha256": digest, "file": str(file), "chunks": files.chunk_count(file)}

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._changed.notify_all()

    def _send(self, sender: bytes, what: WireMessage) -> None:
        self.socket.send_multipart([sender, *frames(what)])

    def _receive(self, sender: bytes, parts: Sequence[bytes]) -> None:
        try:
            got = message(parts)
            if got.kind == "hello":
                self._welcome(sender, got.facts)
            elif got.facts.get("instance") != self.instance or sender not in self.workers:
                self.buffer.late += got.kind == "group"
                self._send(sender, WireMessage("unknown"))
            else:
                self._heed(sender, self.workers[sender], got)
        except (WireError, KeyError, TypeError) as error:
            self.refused += 1
            log.warning("a message was refused: %s", error)
            self._send(sender, WireMessage("refused", {"why": f"a message was refused: {error}"}))

    def _welcome(self, sender: bytes, facts: Mapping[str, Any]) -> None:
        why = None
        if not secrets.compare_digest(str(facts["token"]).encode(), self.token.encode()):
            why = "its token is not the trainer's: give --token-file the file stream/token of the run's folder"
        elif differ := [key for key, value in self.identity.items() if facts["identity"].get(key) != value]:
            why = f"it has another {' and '.join(differ)} than the trainer: give it the same config, code and data"
        if why is not None:
            self.refused += 1
            self._send(sender, WireMessage("refused", {"why": why}))
            return
        self.buffer.release(sender.hex())  # what it had before it began anew
        self.workers[sender] = ConnectedWorker(str(facts["name"]), time.monotonic())
        self._last_alive = time.monotonic()
        sent = {} if self.source is None else _small_files(self.source)
        facts = {"instance": self.instance, "patience": self.cfg.patience, "weights": self.cfg.weights}
        arrays = {name: np.frombuffer(content, np.uint8) for name, content in sent.items()}
        self._send(sender, WireMessage("welcome", facts, arrays))

    def _heed(self, sender: bytes, worker: ConnectedWorker, got: WireMessage) -> None:
        worker.seen = self._last_alive = time.monotonic()
        facts = got.facts
        match got.kind:
            case "beat":
                self._send(sender, WireMessage("beat"))
            case "idle":
                worker.idle = self.buffer.leased_by(sender.hex()) is None
            case "verified":
                worker.verified.add(facts["version"])
            case "group":
                self._take_group(worker, facts, got.arrays)
            case "done":
                self._end_unit(worker)
            case "failed":
                self._fail(EngineError(f"worker {worker.name}: {facts['why']}"))
            case "fetch":
                self._send_chunk(sender, facts)
            case other:
                raise WireError(f"it is of the unknown kind {other!r}")

    def _take_group(self, worker: ConnectedWorker, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        step, number, problem = facts["step"], facts["unit"], facts["problem"]
        prompt = self.prompts.get(step, {}).get(problem)
        if prompt is not None:
            group_of(prompt, facts, arrays)  # refuses a torn one
        if self.buffer.end(step, number, facts["attempt"], problem, (dict(facts), dict(arrays)), time.monotonic()):
            self.arrived += 1
            worker.groups += 1
            tokens = arrays["lengths"].tolist()
            worker.tokens += sum(tokens)
            self.dispatch.group_ended(problem, tokens)
            if (unit := self.buffer.unit(step, number)) is not None:
                self.dispatch.unit_ended(max(int(arrays["lengths"].max()) for _, arrays in unit))
            jsonl.append(self.folder / LENGTHS, {"step": step, "problem": problem, "tokens": tokens})
            self._changed.notify_all()

    def _end_unit(self, worker: ConnectedWorker) -> None:
        if worker.unit is not None:
            unit = worker.unit
            self._busy += time.monotonic() - max(worker.started, self._looked)
            row = {"who": worker.name, "what": "generate", "step": unit.step, "unit": unit.number}
            row |= {"began": worker.began, "ended": time.time(), "groups": worker.groups, "tokens": worker.tokens}
            jsonl.append(self.folder / TIMELINE, row)
        worker.unit, worker.groups, worker.tokens = None, 0, 0

    def _look_after_workers(self, now: float) -> None:
        silent = self.buffer.silent(now, self.cfg.timeout)
        dead = [] if self.local is None else self.local.replace_dead(self.arrived)
        for sender, worker in list(self.workers.items()):
            if now - worker.seen > self.cfg.patience or sender.hex() in silent or worker.name in dead:
                self._lose(sender, worker)
        if not self.workers and now - self._last_alive > self.cfg.patience and self.buffer.waiting_groups():
            self._fail(
                EngineError(
                    f"no worker for {self.cfg.patience:.0f} s: start one with `stepstack generate NAME --connect "
                    f"{self.address} --token-file {self.folder / 'token'}`, or set stream.workers"
                )
            )

    def _lose(self, sender: bytes, worker: ConnectedWorker) -> None:
        del self.workers[sender]
        self.lost += 1
        if (lease := self.buffer.release(sender.hex())) is not None:
            left = len(lease.wanted)
            log.warning("worker %s is gone: %d groups of step %d wait for another", worker.name, left, lease.unit.step)

    def _choose(self, waiting: Sequence[WorkUnit], worker: str) -> WorkUnit | None:
        return self.dispatch.choose(waiting, worker, [sender.hex() for sender in self.workers])

    def _hand_out(self, now: float) -> None:
        if not self.buffer.steps <= self.sampling.keys():
            return  # restored from a checkpoint, and not admitted yet: nobody knows its prompts
        for sender, worker in self.workers.items():
            if worker.idle and (lease := self.buffer.lease(sender.hex(), now)) is not None:
                worker.idle, worker.unit = False, lease.unit
                worker.began, worker.started = time.time(), now
                self._send(sender, self._work(lease))

    def _work(self, lease: Lease) -> WireMessage:
        unit = lease.unit
        sampling = self.sampling[unit.step]
        prompts = [self.prompts[unit.step][problem] for problem in unit.problems]
        facts = {
            "instance": self.instance,
            "step": unit.step,
            "unit": unit.number,
            "attempt": lease.attempt,
            "problems": list(unit.problems),
            "wanted": list(lease.wanted),
            "seed": sampling.seed,
            **self._file_of(unit.version),
        }
        ids = np.array([token for prompt in prompts for token in prompt.ids], np.int64)
        return WireMessage("work", facts, {"ids": ids})

    def _send_chunk(self, sender: bytes, facts: Mapping[str, Any]) -> None:
        """A chunk of a version, as a difference to ``base`` where that is still there."""
        version, number, base = facts["version"], facts["chunk"], facts["base"]
        if version not in self.weights.digests:  # its work was done by others while it was fetched
            self._send(sender, WireMessage("gone", {"version": version}))
            return
        if number not in range(files.chunk_count(self.weights.path(version))):
            raise WireError(f"it asks for chunk {number} of version {version}, which has none of this number")
        content = files.read_chunk(self.weights.path(version), number)
        before = None
        if base in self.weights.digests:
            before = files.read_chunk(self.weights.path(base), number)
            before = before if len(before) == len(content) else None
        sent = files.packed(content, before)
        self.sent_bytes += len(sent)
        facts = {"version": version, "chunk": number, "base": None if before is None else base}
        reply = WireMessage("chunk", facts, {"content": np.frombuffer(sent, np.uint8)})
        if self.cfg.rate is None:
            self._send(sender, reply)
        else:
            self._link_free = max(self._link_free, time.monotonic()) + len(sent) / (self.cfg.rate * 1e6)
            self._later.append((self._link_free, sender, reply))


def _token(file: Path) -> str:
    """The secret of a run, made once, readable by its owner alone."""
    if not file.is_file():
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(16))
    return file.read_text().strip()


def _small_files(folder: Path) -> dict[str, bytes]:
    """Files of a model's folder but its weights: what its shape and its tokenizer are made from."""
    return {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES) and file.stat().st_size <= SOURCE_LIMIT
    }


def _stored(group: tuple[dict, dict]) -> dict[str, Any]:
    facts, arrays = group
    return {"facts": json.dumps(facts), "arrays": {name: array.tolist() for name, array in arrays.items()}}


def _restored(stored: Mapping[str, Any]) -> tuple[dict, dict]:
    types = {"lengths": np.int64, "ids": np.int64, "logprobs": np.float64}
    arrays = {name: np.array(values, types[name]) for name, values in stored["arrays"].items()}
    return json.loads(stored["facts"]), arrays
