"""A small OpenAI-compatible server over real HTTP, whose answers come from a real model, with faults to switch on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from stepstack.generation.hf import HfGenerator
from stepstack.generation.prompts import Message, encode
from stepstack.generation.types import Prompt, Rollout, Sampling
from stepstack.records import Problem


class ModelServer:
    """Serves ``generator`` on loopback until ``close``; a context manager.

    Faults, to be set at any time: ``statuses`` answers the next requests with these instead; ``refuse`` answers prompts
    that hold this text with 400; ``torn`` breaks so many streams off in their middle ("end": as if they were over,
    "reset": against HTTP, "error": with an error as an event); ``usage`` False tells no token counts; ``leave_after``
    so many answers the server goes away; ``pause`` seconds between tokens; ``unsupported`` settings are refused, one at
    a time, as OpenAI does; ``form``: answers as a stream, in one piece, as a page, or as JSON of another form;
    ``finishes`` renames the reasons of ends; ``per_second`` requests are let through, others get 429 and
    ``retry_after``; ``listed``: what /v1/models tells of a model, where "clock" as ``created`` is the time.

    ``asked`` are the bodies of requests for answers, ``keys`` their API keys; ``answered`` counts those that were
    answered to the end, ``refused`` those over the rate, ``hung_up`` those whose client went away.
    """

    def __init__(
        self, generator: HfGenerator, *, models: tuple[str, ...] = ("tiny",), key: str | None = None, port: int = 0
    ):
        self.generator, self.models, self.key = generator, models, key
        self.statuses: list[int] = []
        self.refuse: str | None = None
        self.torn: list[Literal["end", "reset", "error"]] = []
        self.usage, self.leave_after, self.pause = True, 0, 0.0
        self.listed: dict[str, Any] = {"root": "tests/tiny", "created": 0}
        self.unsupported: tuple[str, ...] = ()
        self.form: Literal["stream", "json", "html", "odd"] = "stream"
        self.finishes: dict[str, str | None] = {}
        self.retry_after: float | None = None
        self.per_second: float | None = None
        self.tokens, self.filled = 1.0, time.monotonic()
        self.refused = 0
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answered = self.hung_up = 0
        self.lock = threading.Lock()
        self._http = Http(("127.0.0.1", port), self)
        self.port: int = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.gone = False

    def close(self) -> None:
        """Refuse connections from now on."""
        with self.lock:
            was, self.gone = self.gone, True
        if not was:
            self.shut()

    def shut(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def rollout(self, body: dict[str, Any]) -> Rollout:
        """The model's answer to a request. ValueError where it does not fit."""
        if "messages" in body:
            request = [Message(**turn) for turn in body["messages"]]
        else:
            request = body["prompt"]
        prompt = Prompt(Problem(0, "", ""), encode(request, self.generator.tokenizer))
        names = ("temperature", "top_p", "max_tokens", "seed", "top_k")
        chosen = {name: body[name] for name in names if name in body}
        chosen |= {"max_tokens": body["max_completion_tokens"]} if "max_completion_tokens" in body else {}
        sampling = Sampling(**chosen)
        with self.lock:  # a generator decodes one batch at a time
            [group] = self.generator.generate([prompt], sampling)
        return group.rollouts[0]

    def has_room(self) -> bool:
        """Whether the rate of requests allows one more now (a bucket that holds one second's)."""
        if self.per_second is None:
            return True
        with self.lock:
            now = time.monotonic()
            filled = self.tokens + (now - self.filled) * self.per_second
            self.tokens, self.filled = min(max(self.per_second, 1.0), filled), now
            if self.tokens < 1:
                self.refused += 1
                return False
            self.tokens -= 1
            return True

    def pieces(self, rollout: Rollout) -> Iterator[str]:
        """An answer token by token; bytes of a letter that is not whole wait for the rest."""
        eos = set(self.generator.eos.tolist())
        ids = [i for i in rollout.ids if i not in eos]
        shown = ""
        for end in range(1, len(ids) + 1):
            text = self.generator.tokenizer.decode(ids[:end], skip_special_tokens=False)
            whole = end == len(ids) or not text.endswith("\ufffd")
            yield text[len(shown) :] if whole else ""
            shown = text if whole else shown


class Http(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], model: ModelServer):
        super().__init__(address, Handler)
        self.model = model


class Handler(BaseHTTPRequestHandler):
    server: Http
    protocol_version = "HTTP/1.1"

    @property
    def model(self) -> ModelServer:
        return self.server.model

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.model.hung_up += 1

    def do_GET(self) -> None:
        listed = dict(self.model.listed)
        if listed.get("created") == "clock":
            listed["created"] = int(time.time())
        rows = [{"id": name, "object": "model", "owned_by": "tests", **listed} for name in self.model.models]
        if self.allowed():
            self.reply(200, {"object": "list", "data": rows})

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        data = self.rfile.read(size)
        if self.model.gone or len(data) < size:
            self.close_connection = True
            return
        body = json.loads(data)
        with self.model.lock:
            self.model.asked.append(body)
            self.model.keys.append(self.headers["Authorization"])
            status = self.model.statuses.pop(0) if self.model.statuses else 200
            torn = self.model.torn.pop(0) if status == 200 and self.model.torn else None
        if not self.allowed():
            return
        if body["model"] not in self.model.models:
            self.fail(404, f"the model {body['model']} does not exist")
        elif not self.model.has_room():
            self.fail(429, "rate limit: come back later")
        elif name := next((name for name in self.model.unsupported if name in body), None):
            use = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
            self.fail(400, f"Unsupported parameter: '{name}' is not supported with this model.{use}")
        elif status != 200:
            self.fail(status, f"made to answer {status}")
        elif self.model.refuse and self.model.refuse in json.dumps(body):
            self.fail(400, "this prompt is refused")
        else:
            self.answer(body, torn)

    def answer(self, body: dict[str, Any], torn: str | None) -> None:
        try:
            rollout = self.model.rollout(body)
        except ValueError as error:
            self.fail(400, str(error))
            return
        if self.model.form == "html":
            self.reply(200, "<html>welcome</html>", "text/html")
        elif self.model.form == "odd":
            self.reply(200, {"choices": [{"answer": "2"}]})
        elif self.model.form == "json" or not body.get("stream"):
            self.whole(body, rollout)
        else:
            self.stream(body, rollout, torn)

    def whole(self, body: dict[str, Any], rollout: Rollout) -> None:
        text = "".join(self.model.pieces(rollout))
        words = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        choice = {"index": 0, "finish_reason": self.reason(rollout), **words}
        self.reply(200, {"id": "1", "choices": [choice], "usage": usage(len(rollout.ids))})

    def reason(self, rollout: Rollout) -> str | None:
        return self.model.finishes.get(rollout.finish, rollout.finish)

    def stream(self, body: dict[str, Any], rollout: Rollout, torn: str | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if torn == "end":
            self.send_header("Connection", "close")
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = "messages" in body
        pieces = list(self.model.pieces(rollout))
        for number, piece in enumerate(pieces):
            if torn and number >= len(pieces) // 2:
                if torn == "error":
                    self.send('data: {"error": {"message": "the engine died"}}\n\n', torn)
                self.close_connection = True
                return
            self.event({"choices": [self.choice(chat, piece, None)]}, torn)
            time.sleep(self.model.pause)
        self.event({"choices": [self.choice(chat, "", self.reason(rollout))]}, torn)
        if self.model.usage and body.get("stream_options", {}).get("include_usage"):
            self.event({"choices": [], "usage": usage(len(rollout.ids))}, torn)
        with self.model.lock:
            self.model.answered += 1
            leaving = self.model.answered == self.model.leave_after
            self.model.gone |= leaving  # before the client knows of its answer: it may ask the next at once
        self.send("data: [DONE]\n\n", torn)
        self.wfile.write(b"0\r\n\r\n")
        if leaving:
            self.model.shut()

    def choice(self, chat: bool, piece: str, finish: str | None) -> dict[str, Any]:
        words = {"delta": {"content": piece}} if chat else {"text": piece}
        return {"index": 0, "finish_reason": finish, **words}

    def event(self, value: dict[str, Any], torn: str | None) -> None:
        row = {"id": "1", "object": "chunk", "created": 0, "model": self.model.models[0], "usage": None, **value}
        self.send(f"data: {json.dumps(row)}\n\n", torn)

    def send(self, text: str, torn: str | None) -> None:
        data = text.encode()
        self.wfile.write(data if torn == "end" else b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def allowed(self) -> bool:
        if self.headers["Authorization"] == (self.model.key and f"Bearer {self.model.key}"):
            return True
        self.fail(401, f"wrong API key: {self.headers['Authorization']}")
        return False

    def fail(self, status: int, message: str) -> None:
        self.reply(status, {"error": {"message": message, "type": "error", "param": None, "code": status}})

    def reply(self, status: int, value: dict[str, Any] | str, kind: str = "application/json") -> None:
        data = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status == 429 and self.model.retry_after is not None:
            self.send_header("Retry-After", f"{self.model.retry_after:g}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
