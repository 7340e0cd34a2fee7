"""``vllm serve`` processes behind HTTP as a generator."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from stepstack.generation.types import EngineError, Group, Prompt, Rollout, Sampling
from stepstack.generation.vllm.config import VllmServerConfig
from stepstack.generation.vllm.engine import Weights
from stepstack.generation.vllm.http import INITIAL, Server, buckets, send_by_disk
from stepstack.generation.vllm.nccl import NcclSender
from stepstack.generation.vllm.request import request, to_rollout


class VllmServerGenerator:
    """Generator with running ``vllm serve`` processes; groups go round-robin over them.

    A rollout is one request. Every rank of a distributed run may have one and generates for its own prompts; all ranks
    call ``load`` together, the first one sends. Rollouts in flight end with the weights they began with, later ones
    wait for ``load``. ``retries`` counts the connection errors that were survived.
    Run on CPU: all of it but ``transfer: nccl`` (no GPU here).
    """

    def __init__(self, cfg: VllmServerConfig):
        """Waits up to ``patience`` seconds for each server; EngineError if one cannot be used, with its address."""
        self.cfg, self.version = cfg, 0
        self.servers = [Server(url, cfg.patience, cfg.timeout) for url in cfg.urls]
        deaf = [server.url for server in self.servers if not server.receives]
        if cfg.transfer == "nccl" and deaf:
            flag = """--weight-transfer-config '{"backend": "nccl"}'"""
            raise EngineError(f"{', '.join(deaf)} cannot receive weights by nccl: start with {flag}, or transfer: disk")
        self.max_positions = min(server.max_model_len for server in self.servers)
        # Weights of an earlier run must not pass for this run's initial ones.
        self._tag = INITIAL if all(server.weights() == INITIAL for server in self.servers) else None
        self._turn = itertools.count()
        self._gate = threading.Condition()
        self._active, self._loading = 0, False
        self._nccl: NcclSender | None = None

    def sleep(self) -> None:
        """Nothing to lend: the servers have devices of their own."""

    @property
    def retries(self) -> int:
        return sum(server.retries for server in self.servers)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Groups as they end. Closing the iterator aborts what is in flight.

        EngineError, naming the server: it stays away, restarted with other weights, or refused a request.
        """
        with self._gate:
            self._gate.wait_for(lambda: not self._loading)
            tag = self._current()
        for server in self.servers:
            server.require(tag)
        rows = [
            (prompt, request(prompt, s, sampling, self.max_positions), s)
            for prompt in prompts
            for s in range(sampling.n)
        ]
        stop = threading.Event()
        pool = ThreadPoolExecutor(max(1, min(self.cfg.concurrency, len(rows))), thread_name_prefix="vllm")
        futures: dict[Future[Rollout], int] = {}
        # All samples of a prompt go to one server, which has the prompt in its prefix cache.
        homes = [self.servers[next(self._turn) % len(self.servers)] for _ in prompts]
        for at, (prompt, params, s) in enumerate(rows):
            i = at // sampling.n
            futures[pool.submit(self._rollout, homes[i], prompt, s, params, stop)] = i
        done: dict[int, list[Rollout]] = {i: [] for i in range(len(prompts))}
        try:
            for future in as_completed(futures):
                i = futures[future]
                done[i].append(future.result())
                if len(done[i]) == sampling.n:
                    yield Group(prompts[i], tuple(sorted(done.pop(i), key=lambda r: r.sample)))
        finally:
            stop.set()
            for server in self.servers:
                server.hang_up(stop)
            pool.shutdown(wait=True, cancel_futures=True)

    def load(self, weights: Weights, version: int) -> None:
        """Send full tensors under their Hugging Face names to every server and make them forget the prefix cache.

        Several ranks first gather all of them, which takes all ranks, into the first one's host memory; a server that
        is slow between two gathers would keep all ranks waiting in a collective, or for ever, where NCCL sends too.
        """
        with self._gate:
            self._loading = True
            self._gate.wait_for(lambda: self._active == 0)
            self._tag = None
        try:
            first, failure = not dist.is_initialized() or dist.get_rank() == 0, [""]
            if dist.is_initialized():
                dist.barrier()  # no rank has a rollout in flight from here on
                weights = _gathered(weights, keep=first)
            try:
                if first:
                    self._send(iter(weights), str(version))
            except EngineError as error:
                failure = [str(error)]
            if dist.is_initialized():
                dist.broadcast_object_list(failure, src=0)
            if failure[0]:
                raise EngineError(f"load of version {version}: {failure[0]}")
            self.version, self._tag = version, str(version)
        finally:
            with self._gate:
                self._loading = False
                self._gate.notify_all()

    def _current(self) -> str:
        if self._tag is None:
            raise EngineError(f"{', '.join(self.cfg.urls)}: weights of another run or a failed load: call load first")
        return self._tag

    def _rollout(
        self, server: Server, prompt: Prompt, sample: int, params: dict[str, Any], stop: threading.Event
    ) -> Rollout:
        with self._gate:
            self._gate.wait_for(lambda: not self._loading)
            version, tag = self.version, self._current()
            self._active += 1
        try:
            body = {"model": server.model, "prompt": list(prompt.ids), "return_token_ids": True, **params}
            [choice] = server.call("/v1/completions", body, tag=tag, stop=stop)["choices"]
        finally:
            with self._gate:
                self._active -= 1
                self._gate.notify_all()
        return to_rollout(
            prompt,
            sample,
            version,
            ids=choice["token_ids"],
            logprobs=choice["logprobs"]["token_logprobs"],
            text=choice["text"],
            finish=choice["finish_reason"],
            stop=choice["stop_reason"],
        )

    def _send(self, weights: Iterator[tuple[str, Tensor]], tag: str) -> None:
        names: list[str] = []
        pieces = buckets(_noting(weights, names), int(self.cfg.bucket_gib * 2**30))
        if self.cfg.transfer == "disk":
            send_by_disk(self.servers, pieces, Path(self.cfg.dir).resolve(), tag)
        else:
            self._nccl = self._nccl or NcclSender(self.servers, self.cfg)
            self._nccl.send(pieces, tag)
        for server in self.servers:
            if not server.call("/reset_prefix_cache", {})["success"]:
                raise EngineError(
                    f"{server.url} kept its prefix cache: somebody else's requests are running on it: stop them"
                )
            server.require(tag)
            if server.on_cpu and not any(name.endswith("lm_head.weight") for name in names):
                raise EngineError(
                    f"{server.url} runs on a CPU and the embeddings are tied: vLLM would go on with its first head. "
                    "Give an untied copy of the model, serve on GPUs, or use generator type vllm (docs/vllm.md)"
                )


def _noting(weights: Iterator[tuple[str, Tensor]], names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The weights, whose names are put into ``names`` as they pass."""
    for name, tensor in weights:
        names.append(name)
        yield name, tensor


def _gathered(weights: Weights, keep: bool) -> list[tuple[str, Tensor]]:
    """Whole tensors in host memory, on the rank that is to keep them; every rank takes part in each."""
    tensors = []
    for name, tensor in weights:
        if keep:
            tensors.append((name, tensor.detach().to("cpu", copy=True)))
    return tensors
