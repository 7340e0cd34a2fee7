"""The client of ``vllm serve`` over real HTTP, against a server with vLLM's endpoints and faults to switch on."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stepstack.generation.types import EngineError, Sampling
from stepstack.generation.vllm.config import VllmServerConfig
from stepstack.generation.vllm.http import Server, ask, buckets, everywhere, send_by_disk
from stepstack.generation.vllm.server import VllmServerGenerator


class Fake(ThreadingHTTPServer):
    """``drop``: answers to /v1/completions that are broken off; ``pause``: seconds before one. ``asked``: (path, body)
    of every POST. ``hung_up`` counts clients that left during a pause."""

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.version, self.mode, self.drop, self.pause = "default", "processed_logprobs", 0, 0.0
        self.device = "cuda"
        self.asked: list[tuple[str, Any]] = []
        self.hung_up = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"choices": ["answer"]}

    def reload(self, folder: Path) -> None:
        pass

    def posts(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            self.reply(200, {"data": [{"id": "tiny"}]})
        elif path == "/server_info":
            config: dict[str, Any] = {"model_config": {"logprobs_mode": self.server.mode, "max_model_len": 128}}
            config |= {"weight_transfer_config": None, "device_config": {"device": self.server.device}}
            self.reply(200, {"vllm_config": config})
        elif path == "/weight_info":
            self.reply(200, {"weight_version": self.server.version})
        else:
            self.reply(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        if self.path == "/v1/completions":
            self.complete(body)
        elif self.path == "/update_weight_version":
            self.server.version = body["new_version"]
            self.reply(200, None)
        elif self.path == "/collective_rpc":
            self.server.reload(Path(body["kwargs"]["weights_path"]))
            self.reply(200, {})
        elif self.path == "/reset_prefix_cache":
            self.reply(200, {"success": True})
        else:
            self.reply(500, {"error": {"message": f"made to fail at {self.path}"}})

    def complete(self, body: dict[str, Any]) -> None:
        if self.server.drop:
            self.server.drop -= 1
            return
        self.connection.settimeout(self.server.pause or None)
        if self.server.pause:
            try:
                left = self.connection.recv(1) == b""
            except TimeoutError:
                left = False
            self.server.hung_up += left
            if left:
                return
        self.reply(200, self.server.answer(body))

    def reply(self, status: int, value: Any) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def fake():
    with Fake() as fake:
        yield fake
        fake.shutdown()


def connected(fake: Fake, patience: float = 0.3, timeout: float = 20.0) -> Server:
    return Server(fake.url + "/", patience, timeout)


def complete(server: Server, **options: Any) -> Any:
    return server.call("/v1/completions", {"prompt": [1]}, **options)


def test_a_server_says_what_it_is(fake):
    server = connected(fake)
    assert (server.url, server.model, server.max_model_len, server.receives) == (fake.url, "tiny", 128, False)
    assert server.weights() == "default"
    assert complete(server) == {"choices": ["answer"]}
    assert fake.posts("/v1/completions") == [{"prompt": [1]}]
    fake.mode = "raw_logprobs"
    with pytest.raises(EngineError, match="reports raw_logprobs: start it with --logprobs-mode processed_logprobs"):
        connected(fake)


def test_nobody_there_is_an_error_that_says_what_to_do():
    with pytest.raises(EngineError, match=r"127.0.0.1:9 did not answer /v1/models for 0.2 s .* start `vllm serve`"):
        Server("http://127.0.0.1:9", 0.2, 20)


def test_a_url_without_its_scheme_is_refused_at_once():
    with pytest.raises(ValueError, match="url 'localhost:8000' must begin with http:// or https://"):
        Server("localhost:8000", 20, 20)


def test_a_server_that_starts_late_is_waited_for():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started: list[Fake] = []
    timer = threading.Timer(0.4, lambda: started.append(Fake(port)))
    timer.start()
    server = Server(f"http://127.0.0.1:{port}", 20, 20)
    assert server.retries > 0
    timer.join()
    started[0].shutdown()
    started[0].server_close()


def test_a_broken_answer_is_asked_for_again(fake):
    server = connected(fake, patience=20)
    fake.drop = 2
    assert complete(server, tag="default") == {"choices": ["answer"]}
    assert (server.retries, len(fake.asked)) == (2, 3)


def test_what_restarted_with_other_weights_is_not_asked_again(fake):
    server = connected(fake, patience=20)
    fake.version, fake.drop = "7", 1
    with pytest.raises(EngineError, match=r"has weights '7' instead of '3': it was restarted"):
        complete(server, tag="3")
    assert len(fake.asked) == 1
    server.require("7")
    with pytest.raises(EngineError, match="instead of '3'"):
        server.require("3")


def test_again_false_means_once(fake):
    server = connected(fake, patience=20)
    fake.drop = 1
    with pytest.raises(EngineError, match=r"did not answer /v1/completions for 0 s \(1 attempts"):
        complete(server, again=False)
    assert (server.retries, len(fake.asked)) == (0, 1)


def test_an_answer_that_takes_too_long_is_an_error(fake):
    server = connected(fake, timeout=0.3)
    fake.pause = 5.0
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"/v1/completions: an answer took longer than timeout: 0.3 s.*raise"):
        complete(server)
    assert time.monotonic() - began < 3
    assert len(fake.asked) == 1


def test_refusals_are_said_and_not_asked_again(fake):
    server = connected(fake, patience=20)
    with pytest.raises(EngineError, match=r"/sleep answered 500: made to fail at /sleep$"):
        server.call("/sleep", {})
    with pytest.raises(EngineError, match=r"/nothing does not exist: start the server with VLLM_SERVER_DEV_MODE=1"):
        server.call("/nothing")
    with pytest.raises(EngineError, match=r"/v1/nothing answered 404: \{\"detail\": \"Not Found\"\}"):
        server.call("/v1/nothing")
    assert server.retries == 0
    futures = everywhere([server, server], "/sleep", [{"n": 1}, {"n": 2}])
    assert all(isinstance(future.exception(), EngineError) for future in futures)
    assert sorted(body["n"] for body in fake.posts("/sleep")[1:]) == [1, 2]
    with pytest.raises(EngineError, match="answered 500"):
        ask([server], "/sleep", {})


def test_hanging_up_ends_the_calls_of_one_generation(fake):
    server = connected(fake)
    fake.pause = 1.5
    stop, other = threading.Event(), threading.Event()
    ends: dict[threading.Event, Any] = {}

    def call(event: threading.Event) -> None:
        try:
            ends[event] = complete(server, stop=event)
        except EngineError as error:
            ends[event] = str(error)

    threads = [threading.Thread(target=call, args=(event,)) for event in (stop, other)]
    for thread in threads:
        thread.start()
    while len(fake.asked) < 2:
        time.sleep(0.01)
    stop.set()
    server.hang_up(stop)
    threads[0].join(1)
    assert ends[stop].endswith("/v1/completions: given up, the iterator of generate was closed")
    threads[1].join(5)
    assert (ends[other], fake.hung_up) == ({"choices": ["answer"]}, 1)
    with pytest.raises(EngineError, match="given up"):
        complete(server, stop=stop)


def test_weights_go_through_a_folder_that_keeps_the_newest(fake, tmp_path):
    server = connected(fake)
    tied = torch.ones(2, 2)
    weights = [("a", tied), ("b", tied), ("c", torch.arange(3.0))]
    (tmp_path / "weights-2.partial").mkdir()
    for tag in ("1", "2"):
        send_by_disk([server], buckets(iter(weights), 32), tmp_path, tag)
        server.require(tag)
    [folder] = tmp_path.iterdir()
    assert folder.name == "weights-2"
    read = {name: tensor for file in folder.iterdir() for name, tensor in load_file(file).items()}
    assert len(list(folder.iterdir())) == 2
    assert all(torch.equal(read[name], tensor) for name, tensor in weights)
    reloads = [body["kwargs"]["weights_path"] for body in fake.posts("/collective_rpc")]
    assert reloads == [str(tmp_path / "weights-1"), str(folder)]


def test_a_tied_head_on_a_cpu_is_refused(fake, tmp_path):
    """There vLLM goes on with the head it began with: log-probabilities were 0.58 off after the first update."""
    body, head = ("model.embed_tokens.weight", torch.ones(2, 2)), ("lm_head.weight", torch.ones(2, 2))
    for device, weights, refused in (("cuda", [body], False), ("cpu", [body, head], False), ("cpu", [body], True)):
        fake.device = device
        generator = VllmServerGenerator(VllmServerConfig(urls=(fake.url,), transfer="disk", dir=str(tmp_path)))
        if refused:
            with pytest.raises(EngineError, match=r"runs on a CPU and the embeddings are tied.*untied copy"):
                generator.load(weights, 1)
            with pytest.raises(EngineError, match="a failed load"):
                next(generator.generate([], Sampling()))
        else:
            generator.load(weights, 1)
            assert generator.version == 1
