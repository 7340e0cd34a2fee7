"""vLLM as a Generator: an engine inside the training process, or ``vllm serve`` processes behind HTTP.

Token ids go in and come out, nobody tokenises again; log-probabilities are those of the distribution that was sampled
(temperature, top_k and top_p applied). Importing this module does not import vllm: the classes do, and
``VllmServerGenerator`` with ``transfer: disk`` never does. docs/vllm.md says how to start either and what was run.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stepstack.config import Strict
from stepstack.rl.types import EngineError, Group, Prompt, Rollout, Sampling, room, row_seed
from stepstack.rl.vllm_http import INITIAL, Bucket, Server, ask, buckets, everywhere, send_by_disk
from stepstack.rl.vllm_vision import Sight

Weights = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmConfig(Strict):
    """The engine in the training process. ``sleep_level``: what ``sleep()`` does with the weights. 1 keeps a copy in
    host memory, 2 drops them (``load`` must follow), 0 makes ``sleep()`` do nothing. ``load_format: dummy`` starts
    without reading the checkpoint's weights; then too ``load`` comes first."""

    type: Literal["vllm"] = "vllm"
    gpu_memory_utilization: float = 0.45  # share of the device for engine weights and KV cache together
    kv_cache_gib: float | None = None  # exact size of the KV cache instead of what the share leaves
    tensor_parallel_size: int = 1
    max_model_len: int | None = None  # prompt + response; None: the model's own
    max_num_seqs: int = 256
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    sleep_level: Literal[0, 1, 2] = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmServerConfig(Strict):
    """Running servers. ``transfer``: nccl broadcasts weights to the servers' GPUs; disk writes safetensors to ``dir``,
    which trainer and servers must see under the same path."""

    type: Literal["vllm_server"] = "vllm_server"
    urls: tuple[str, ...]  # http://host:port of each server
    transfer: Literal["nccl", "disk"] = "nccl"
    dir: str = ""  # disk: the shared folder; the newest version stays in it
    bucket_gib: float = 1.0  # weights are written or sent in pieces of about this size
    nccl_address: str | None = None  # nccl: the trainer's address as the servers see it; None: vLLM's guess
    nccl_port: int = 51216
    concurrency: int = 256  # rollouts in flight, all servers together
    patience: float = 300.0  # seconds a server may refuse connections (starting up counts) before it is an error
    timeout: float = 3600.0  # seconds one answer may take

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("urls is empty: name at least one server, e.g. http://localhost:8000")
        if self.transfer == "disk" and not self.dir:
            raise ValueError("transfer: disk needs dir: a folder that the trainer and the servers share")


def request(prompt: Prompt, sample: int, sampling: Sampling, max_model_len: int) -> dict[str, Any]:
    """Sampling parameters of one rollout, by the names that vLLM gives them in Python and over HTTP.

    One rollout is one request (n=1), so that the seed is ours; the prefix cache pays for the repeated prompt.
    Everything a model's generation_config could set is set here.
    """
    return {
        "n": 1,
        "seed": row_seed(sampling.seed, prompt.problem.index, sample),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": room(prompt, sampling, max_model_len),
        "stop": list(sampling.stop),
        "logprobs": 0,  # of the sampled token only
        "skip_special_tokens": False,
        # True would also put the EOS token into the text; the stop string is put back by to_rollout.
        "include_stop_str_in_output": False,
    }


def to_rollout(
    prompt: Prompt,
    sample: int,
    version: int,
    *,
    ids: Sequence[int],
    logprobs: Sequence[float],
    text: str,
    finish: str | None,
    stop: int | str | None,
) -> Rollout:
    """A Rollout of what vLLM returned; ``stop`` is the matched stop string, an extra EOS id, or None for EOS."""
    where = f"rollout {sample} of prompt {prompt.problem.index}"
    if finish not in ("stop", "length"):
        raise EngineError(f"{where} ended with {finish!r}: the engine aborted it; its log says why")
    if len(ids) != len(logprobs):
        raise EngineError(f"{where} has {len(ids)} ids but {len(logprobs)} logprobs: this vLLM is not supported")
    text = text + stop if isinstance(stop, str) else text
    kind: Literal["stop", "length"] = "stop" if finish == "stop" else "length"
    return Rollout(prompt, sample, tuple(ids), tuple(logprobs), text, kind, version)


class VllmGenerator:
    """Generator with an engine in this process, on the GPU that also trains.

    Build it after the Accelerator. In a distributed run every rank has an engine and generates for its own prompts;
    with ``tensor_parallel_size`` T, ranks [0..T-1], [T..2T-1], ... share one engine, its ranks must call ``generate``,
    ``load`` and ``sleep`` together (with as many prompts as each has, also none), and each gets its own groups back.

    Memory: call ``sleep()`` before training; ``load`` and ``generate`` wake what they need.
    Run on CPU, also with two ranks and with tensor_parallel_size 2. Not run (no GPU here): sleep and wake on CUDA.
    """

    def __init__(self, model: str | Path, cfg: VllmConfig, sight: Sight | None = None):
        """``model``: folder or hub name with config, tokenizer and (unless dummy) the initial weights, version 0.
        ``sight``: of a model whose prompts have pictures."""
        # vLLM would start the engine in another process, where weights cannot be streamed to.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM
        from vllm.platforms import current_platform

        world = dist.get_world_size() if dist.is_initialized() else 1
        if world % cfg.tensor_parallel_size:
            raise ValueError(f"tensor_parallel_size {cfg.tensor_parallel_size} does not divide the {world} processes")
        if cfg.sleep_level and not current_platform.is_sleep_mode_available():
            raise ValueError(f"vLLM cannot sleep on {current_platform.device_type}: set sleep_level: 0")
        kv_cache = {} if cfg.kv_cache_gib is None else {"kv_cache_memory_bytes": int(cfg.kv_cache_gib * 2**30)}
        self.cfg, self.version, self.sight = cfg, 0, sight
        with _random_state_kept():
            self.llm = LLM(
                str(model),
                # The launcher's processes are the engine's: vLLM joins their process group and starts no workers.
                distributed_executor_backend="external_launcher" if world > 1 else "uni",
                tensor_parallel_size=cfg.tensor_parallel_size,
                gpu_memory_utilization=cfg.gpu_memory_utilization,
                max_model_len=cfg.max_model_len,
                max_num_seqs=cfg.max_num_seqs,
                enforce_eager=cfg.enforce_eager,
                enable_prefix_caching=cfg.enable_prefix_caching,
                dtype=cfg.dtype,
                load_format=cfg.load_format,
                enable_sleep_mode=cfg.sleep_level > 0,
                logprobs_mode="processed_logprobs",
                **kv_cache,
                **({} if sight is None else sight.engine_options),
            )
        self.engine = self.llm.llm_engine
        self.max_positions: int = self.engine.model_config.max_model_len
        self._valid = cfg.load_format != "dummy"  # the engine holds the weights of self.version
        self._asleep: set[str] = set()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Groups as they end (tensor parallel: all at the end, since its ranks must step together).

        EngineError if the weights are gone (``load`` first) or an earlier iterator was neither exhausted nor closed.
        """
        if not self._valid:
            raise EngineError(
                "the engine has no weights (sleep_level 2, load_format dummy or a failed load): call load"
            )
        self._idle("generate")
        self.wake()
        alone = self.cfg.tensor_parallel_size == 1
        yield from (self._generate if alone else self._generate_shared)(prompts, sampling)

    def load(self, weights: Weights, version: int) -> None:
        """Stream full tensors under their Hugging Face names into the engine, then forget the prefix cache.

        Tensors may be on any device and of any float type; each must own its memory until the next layer begins.
        EngineError if a parameter of the engine got no value.
        """
        self._idle("load")
        if "weights" in self._asleep:
            self._wake({"weights"})
        self._valid = False
        [missing] = self.llm.collective_rpc(_load_into, args=(weights,))
        if missing:
            raise EngineError(f"load of version {version} gave no value to {len(missing)} parameters: {missing[:5]}")
        # Keys and values of the old weights must not serve the new ones.
        if not self.llm.reset_prefix_cache():
            raise EngineError("vLLM kept its prefix cache: something still holds blocks of it")
        self.engine.reset_encoder_cache()
        self.engine.set_weight_version(str(version))
        self.version, self._valid = version, True

    def sleep(self) -> None:
        """Free the KV cache, and the weights as ``sleep_level`` says, for the training phase. Level 0: nothing."""
        everything = {"weights", "kv_cache"}
        if self.cfg.sleep_level == 0 or self._asleep == everything:
            return
        self._idle("sleep")
        self.wake()  # vLLM ignores a sleep while a part of it is asleep
        self.llm.sleep(level=self.cfg.sleep_level)
        self._asleep = everything
        self._valid = self._valid and self.cfg.sleep_level == 1  # level 2 wakes with arbitrary memory, not with weights

    def wake(self) -> None:
        """Take back all memory. After level 2 the weights are still invalid: only ``load`` makes them valid."""
        if self._asleep:
            self._wake(set(self._asleep))

    def _wake(self, tags: set[str]) -> None:
        torch.cuda.empty_cache()  # what training no longer uses, its allocator would keep from the engine
        self.llm.wake_up(tags=sorted(tags))
        self._asleep -= tags

    def _idle(self, what: str) -> None:
        if self.engine.has_unfinished_requests():
            raise EngineError(f"{what} while rollouts are in flight: exhaust or close the iterator of generate first")

    def _generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        rows = [(i, s) for i in range(len(prompts)) for s in range(sampling.n)]
        bias = {} if self.sight is None else {"logit_bias": self.sight.bias}
        params = [SamplingParams(**request(prompts[i], s, sampling, self.max_positions), **bias) for i, s in rows]
        plain = [{"prompt_token_ids": list(p.ids)} if self.sight is None else self.sight.inputs(p) for p in prompts]
        inputs = [TokensPrompt(**plain[i]) for i, _ in rows]
        tickets = self.llm.enqueue(inputs, params, use_tqdm=False) if rows else []
        # Outputs carry the part of the ticket before the random suffix.
        owner = {ticket.rpartition("-")[0]: row for ticket, row in zip(tickets, rows, strict=True)}
        done: dict[int, list[Rollout]] = {i: [] for i in range(len(prompts))}
        try:
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    i, s = owner[output.request_id]
                    done[i].append(self._rollout(prompts[i], s, output.outputs[0]))
                    if len(done[i]) == sampling.n:
                        yield Group(prompts[i], tuple(sorted(done.pop(i), key=lambda r: r.sample)))
        finally:
            self.engine.abort_request(tickets, internal=True)  # those that ended are unknown to it by now

    def _rollout(self, prompt: Prompt, sample: int, out: Any) -> Rollout:
        logprobs = [entry[token].logprob for token, entry in zip(out.token_ids, out.logprobs, strict=True)]
        return to_rollout(
            prompt,
            sample,
            self.version,
            ids=out.token_ids,
            logprobs=logprobs,
            text=out.text,
            finish=out.finish_reason,
            stop=out.stop_reason,
        )

    def _generate_shared(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Gather the prompts of the tensor-parallel ranks, generate all of them on each, keep this rank's."""
        from vllm.distributed.parallel_state import get_tp_group

        tp = get_tp_group()
        parts: list[Any] = [None] * tp.world_size
        dist.all_gather_object(parts, (list(prompts), sampling), group=tp.cpu_group)
        if any(other != sampling for _, other in parts):
            raise ValueError("the ranks of a tensor-parallel group called generate with different Sampling")
        everyone = [prompt for part, _ in parts for prompt in part]
        start = sum(len(part) for part, _ in parts[: tp.rank_in_group])
        mine = {id(prompt) for prompt in everyone[start : start + len(prompts)]}
        groups = list(self._generate(everyone, sampling))  # to the end before anything is yielded
        yield from (group for group in groups if id(group.prompt) in mine)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """vLLM seeds the process it starts in; the training run's generators must not notice."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def _load_into(worker: Any, weights: Weights) -> list[str]:
    """Runs in the worker: the checkpoint-format reload that vLLM's own weight transfer uses. Returns the parameters
    that got no value."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    model = worker.get_model()
    names = {name for name, _ in model.named_parameters()}
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(model)
        loaded = model.load_weights((name, tensor.detach()) for name, tensor in weights)
        finalize_layerwise_reload(model, worker.model_config)
    return sorted(names - set(loaded))


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
        self._nccl: _NcclSender | None = None

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
        """Send full tensors under their Hugging Face names to every server and make them forget the prefix cache."""
        with self._gate:
            self._loading = True
            self._gate.wait_for(lambda: self._active == 0)
            self._tag = None
        try:
            first = not dist.is_initialized() or dist.get_rank() == 0
            if dist.is_initialized():
                dist.barrier()  # no rank has a rollout in flight from here on
            failure, stream = [""], iter(weights)
            try:
                if first:
                    self._send(stream, str(version))
            except EngineError as error:
                failure = [str(error)]
            for _ in stream:  # gathering a tensor is collective: ranks that do not send take part
                pass
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
        pieces = buckets(weights, int(self.cfg.bucket_gib * 2**30))
        if self.cfg.transfer == "disk":
            send_by_disk(self.servers, pieces, Path(self.cfg.dir).resolve(), tag)
        else:
            self._nccl = self._nccl or _NcclSender(self.servers, self.cfg)
            self._nccl.send(pieces, tag)
        for server in self.servers:
            if not server.call("/reset_prefix_cache", {})["success"]:
                raise EngineError(f"{server.url} kept its prefix cache: somebody else's requests are running on it")
            server.require(tag)


class _NcclSender:
    """Trainer's end of vLLM's NCCL weight transfer: rank 0 of a group with every worker of every server. Not run."""

    def __init__(self, servers: Sequence[Server], cfg: VllmServerConfig):
        """Needs vllm in the trainer and its current CUDA device; blocks until all workers have joined."""
        from vllm.distributed.weight_transfer.nccl_common import trainer_init
        from vllm.utils.network_utils import get_ip

        self.servers, self.bytes = servers, int(cfg.bucket_gib * 2**30)
        sizes = [server.call("/get_world_size")["world_size"] for server in servers]
        group = {"master_address": cfg.nccl_address or get_ip(), "master_port": cfg.nccl_port}
        group |= {"world_size": 1 + sum(sizes)}
        packing = {"packed": True, "packed_buffer_size_bytes": self.bytes, "packed_num_buffers": 2}
        offsets = list(itertools.accumulate(sizes, initial=1))[:-1]
        bodies = [{"init_info": {**group, **packing, "rank_offset": offset}} for offset in offsets]
        # The workers wait for the trainer inside this request.
        joining = everywhere(servers, "/init_weight_transfer_engine", bodies, again=False)
        self.group = trainer_init(group)
        for future in joining:
            future.result()

    def send(self, pieces: Iterator[Bucket], tag: str) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer as broadcast

        ask(self.servers, "/start_weight_update", {}, again=False)
        for bucket in pieces:
            info = {
                "names": [name for name, _ in bucket],
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
                "shapes": [list(tensor.shape) for _, tensor in bucket],
            }
            bodies = [{"update_info": info}] * len(self.servers)
            receiving = everywhere(self.servers, "/update_weights", bodies, again=False)
            for future in receiving:
                if future.done():  # refused before any NCCL call: raise here instead of waiting in the broadcast
                    future.result()
            broadcast(iter(bucket), self.group, 0, lambda item: item[1].cuda(), self.bytes, 2)
            for future in receiving:
                future.result()
        ask(self.servers, "/finish_weight_update", {"weight_version": tag}, again=False)
