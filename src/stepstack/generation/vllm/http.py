"""HTTP to ``vllm serve`` processes: retries, restarts noticed, weights through a shared folder. Imports no vllm."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from stepstack.generation.types import EngineError

INITIAL = "default"  # the weight version that a vLLM engine reports until somebody sets one
Bucket = list[tuple[str, Tensor]]


class Server:
    """One ``vllm serve`` process."""

    def __init__(self, url: str, patience: float, timeout: float):
        """``patience``: seconds of refused connections before it is an error; ``timeout``: seconds of one answer."""
        self.url, self.patience, self.timeout = url.rstrip("/"), patience, timeout
        self.retries = 0
        self._lock = threading.Lock()
        self._open: dict[http.client.HTTPConnection, threading.Event] = {}
        self.model: str = self.call("/v1/models")["data"][0]["id"]
        config = self.call("/server_info?config_format=json")["vllm_config"]
        mode = config["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise EngineError(f"{url} reports {mode}: start it with --logprobs-mode processed_logprobs")
        self.max_model_len: int = config["model_config"]["max_model_len"]
        self.receives: bool = config["weight_transfer_config"] is not None

    def weights(self) -> str:
        return self.call("/weight_info")["weight_version"]

    def require(self, tag: str) -> None:
        """EngineError unless the server's weights are version ``tag``."""
        self._check(tag, self.weights())

    def _check(self, tag: str, found: str) -> None:
        if found != tag:
            raise EngineError(
                f"{self.url} has weights {found!r} instead of {tag!r}: it was restarted or another run loaded it. "
                "Resume from a checkpoint, which loads the weights again"
            )

    def call(
        self,
        path: str,
        body: Any = None,
        *,
        tag: str | None = None,
        stop: threading.Event | None = None,
        again: bool = True,
    ) -> dict[str, Any]:
        """GET, or POST of ``body``; connection errors are retried for ``patience`` seconds unless ``again`` is False.

        After one, the server must still have weights ``tag`` (it may have restarted) before ``body`` is sent again.
        Setting ``stop`` and then calling ``hang_up`` ends the call with an EngineError.
        """
        began, wait, attempts = 0.0, 0.1, 0
        patience = self.patience if again else 0.0
        stop = stop or threading.Event()
        while True:
            try:
                if attempts and tag is not None:
                    self._check(tag, self._exchange("/weight_info", None, stop)["weight_version"])
                return self._exchange(path, body, stop)
            except TimeoutError:
                raise EngineError(f"{self.url}{path}: no answer within timeout: {self.timeout:g} s") from None
            except (OSError, http.client.HTTPException) as error:
                now, attempts = time.monotonic(), attempts + 1
                began = now if attempts == 1 else began
                if stop.is_set():
                    raise EngineError(f"{self.url}{path}: given up, the iterator of generate was closed") from None
                if now - began >= patience:
                    raise EngineError(
                        f"{self.url} did not answer {path} for {patience:g} s ({attempts} attempts; {error!r}): "
                        "start `vllm serve` there again (docs/vllm.md) and resume, or take it out of urls"
                    ) from error
            with self._lock:
                self.retries += 1
            stop.wait(wait)
            wait = min(2 * wait, 5.0)

    def hang_up(self, stop: threading.Event) -> None:
        """Close the connections that were opened under ``stop``; the server aborts their requests."""
        with self._lock:  # a connection leaves _open before it is closed, so these are open
            for connection, event in self._open.items():
                if event is stop and connection.sock is not None:
                    with contextlib.suppress(OSError):  # the other end may have closed it
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def _exchange(self, path: str, body: Any, stop: threading.Event) -> dict[str, Any]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=min(30.0, self.timeout))
        with self._lock:
            self._open[connection] = stop
        try:
            try:
                connection.connect()
            except TimeoutError as error:  # a host that is away, not a slow answer
                raise ConnectionError(str(error)) from error
            if stop.is_set():  # hang_up may have looked before there was a socket
                raise ConnectionError("closed")
            connection.sock.settimeout(self.timeout)
            data = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"}
            connection.request("GET" if body is None else "POST", parts.path + path, data, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            with self._lock:
                del self._open[connection]
            connection.close()
        if answer.status == 404 and not path.startswith("/v1/"):
            raise EngineError(f"{self.url}{path} does not exist: start the server with VLLM_SERVER_DEV_MODE=1")
        if answer.status != 200:
            raise EngineError(f"{self.url}{path} answered {answer.status}: {text[:1000]}")
        return json.loads(text) if text else {}


def buckets(weights: Iterable[tuple[str, Tensor]], size: int) -> Iterator[Bucket]:
    """Pieces of at least ``size`` bytes; only one is alive at a time."""
    bucket: Bucket = []
    for name, tensor in weights:
        bucket.append((name, tensor.detach()))
        if sum(t.nbytes for _, t in bucket) >= size:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def everywhere(
    servers: Sequence[Server], path: str, bodies: Sequence[Any], *, again: bool = True
) -> list[Future[dict[str, Any]]]:
    """Start one POST per server; the futures raise what went wrong. ``again``: as in ``Server.call``."""
    pool = ThreadPoolExecutor(len(servers), thread_name_prefix="vllm-load")
    futures = [pool.submit(server.call, path, body, again=again) for server, body in zip(servers, bodies, strict=True)]
    pool.shutdown(wait=False)
    return futures


def ask(servers: Sequence[Server], path: str, body: Any, *, again: bool = True) -> None:
    """The same POST to every server at once; returns when all have answered."""
    for future in everywhere(servers, path, [body] * len(servers), again=again):
        future.result()


def send_by_disk(servers: Sequence[Server], pieces: Iterator[Bucket], folder: Path, tag: str) -> None:
    """Write ``folder``/weights-<tag>/*.safetensors, let every server read it, delete older versions."""
    from safetensors.torch import save_file

    final, partial = folder / f"weights-{tag}", folder / f"weights-{tag}.partial"
    for leftover in (final, partial):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    for number, bucket in enumerate(pieces):
        # A copy of its own for each: safetensors refuses tensors that share memory (tied weights).
        tensors = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in bucket}
        save_file(tensors, partial / f"model-{number:05d}.safetensors")
    partial.rename(final)
    ask(servers, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(final)}})
    ask(servers, "/update_weight_version", {"new_version": tag})
    for old in folder.glob("weights-*"):
        if old != final:
            shutil.rmtree(old)
