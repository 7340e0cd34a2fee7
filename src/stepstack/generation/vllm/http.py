"""HTTP to ``vllm serve`` processes: retries, restarts noticed, weights through a shared folder. Imports no vllm."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from stepstack.generation import http
from stepstack.generation.types import EngineError

INITIAL = "default"  # the weight version that a vLLM engine reports until somebody sets one
Bucket = list[tuple[str, Tensor]]


class Server:
    """One ``vllm serve`` process."""

    def __init__(self, url: str, patience: float, timeout: float):
        """``patience``: seconds of refused connections before it is an error; ``timeout``: seconds of one answer."""
        self.url = url.rstrip("/")
        # A connection of its own for each request: one that the server has just closed would look like an error.
        self._client = http.Client(self.url, patience=patience, timeout=timeout)
        self._lock = threading.Lock()
        self._calls: dict[Future[dict[str, Any]], threading.Event] = {}
        self.model: str = self.call("/v1/models")["data"][0]["id"]
        config = self.call("/server_info?config_format=json")["vllm_config"]
        mode = config["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise EngineError(f"{url} reports {mode}: start it with --logprobs-mode processed_logprobs")
        self.max_model_len: int = config["model_config"]["max_model_len"]
        self.receives: bool = config["weight_transfer_config"] is not None
        self.on_cpu: bool = config["device_config"]["device"] == "cpu"

    @property
    def retries(self) -> int:
        return self._client.retries

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
        stop = stop or threading.Event()

        async def exchange(attempt: int) -> dict[str, Any]:
            if attempt and tag is not None:
                self._check(tag, (await self._client.json("/weight_info"))["weight_version"])
            return await self._client.json(path, body)

        call = http.start(self._client.patiently(path, exchange, patience=None if again else 0.0))
        with self._lock:
            self._calls[call] = stop
        try:
            if stop.is_set():  # hang_up may have looked before the call was there
                call.cancel()
            return call.result()
        except CancelledError:
            raise EngineError(f"{self.url}{path}: given up, the iterator of generate was closed") from None
        except http.ServerAway as error:
            raise EngineError(
                f"{error}: start `vllm serve` there again (docs/vllm.md) and resume, take it out of urls, or raise "
                "patience or timeout"
            ) from error
        except http.Refused as error:
            if error.status == 404 and not path.startswith("/v1/"):
                raise EngineError(
                    f"{self.url}{path} does not exist: start the server with VLLM_SERVER_DEV_MODE=1"
                ) from None
            raise EngineError(str(error)) from None
        finally:
            with self._lock:
                del self._calls[call]

    def hang_up(self, stop: threading.Event) -> None:
        """Cancel the calls that were made under ``stop``; the server aborts their requests."""
        with self._lock:
            calls = [call for call, event in self._calls.items() if event is stop]
        for call in calls:
            call.cancel()


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
