"""An OpenAI-compatible server as an engine: ``vllm serve``, SGLang, llama.cpp, or a paid service.

The server tokenises, so text differs from our own generators in two ways: a special token inside an answer shows only
where the server shows it, and whether a prompt begins with BOS is the server's tokenizer's choice. What a request does
not name, the server chooses: start vLLM with ``--generation-config vllm``, or the model's generation_config.json sets
top_k and penalties.
"""

from __future__ import annotations

import asyncio
import base64
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stepstack.config import ConfigError, Strict
from stepstack.generation import http
from stepstack.generation.prompts import NotText, SpokenChat, SpokenTurn
from stepstack.generation.types import Answer, Budget, EngineError, Finish, Sampling, rollout_seed
from stepstack.harness.engine import Question


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig(Strict):
    """``url``: http://host:port, with or without /v1. ``model``: None takes the one that the server lists. ``key_file``
    holds the API key. ``concurrency``: requests in flight. ``patience``: seconds that the server may refuse (not up
    yet, overloaded) before the evaluation stops. ``timeout``: seconds of one answer."""

    type: Literal["server"] = "server"
    url: str
    model: str | None = None
    key_file: str | None = None
    concurrency: int = 32
    patience: float = 60.0
    timeout: float = 600.0


class ServerEngine:
    """Engine over HTTP. Text goes to /v1/completions, chats to /v1/chat/completions, one streamed request a sample.

    Stop strings are found here and the stream is hung up, since servers strip them and graders read them. ``tokens`` is
    the server's own count where it came before the stream ended, else the number of pieces that held text.
    ``retries`` counts the requests that were sent again.
    """

    def __init__(self, cfg: ServerConfig):
        """Asks the server for its models unless ``cfg`` names one. EngineError when it does not answer, ConfigError for
        several models or an unreadable key."""
        if cfg.concurrency < 1:
            raise ConfigError(f"server.concurrency is {cfg.concurrency}: it must be at least 1")
        self.cfg, self.retries = cfg, 0
        self.url = cfg.url.rstrip("/").removesuffix("/v1")
        self._key = _key(cfg.key_file)
        self.model = cfg.model or http.start(self._only_model()).result()
        self.batch = 4 * cfg.concurrency
        self.facts: Mapping[str, Any] = {"engine": "server", "url": self.url, "model": self.model}

    def model_record(self) -> dict[str, Any]:
        """The record of the model. A server reports no hash of it."""
        return {"name": self.model, "sha256": None}

    def loglikelihood(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        raise EngineError(
            f"the server at {self.url} gives no log-likelihoods of given text: evaluate this task with the model itself"
        )

    def complete(self, questions: Sequence[Question], budget: Budget) -> Iterator[tuple[Question, list[Answer]]]:
        """Questions as their samples are there. Closing the iterator hangs up what still runs."""
        if not isinstance(budget, Sampling):
            raise EngineError(f"{self.url} makes no clips: evaluate with a config of their recipe")
        if budget.max_length is not None:
            raise EngineError(f"{self.url} counts no prompt tokens for us: set sampling.max_length to null")
        finished: queue.SimpleQueue[tuple[Question, list[Answer]] | None] = queue.SimpleQueue()
        answering = http.start(self._ask_all(questions, budget, finished.put))  # answers flow while others are graded
        answering.add_done_callback(lambda _: finished.put(None))
        try:
            while (item := finished.get()) is not None:
                yield item
            answering.result()
        finally:
            answering.cancel()  # nothing where it is over

    async def _ask_all(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        done: Callable[[tuple[Question, list[Answer]]], None],
    ) -> None:
        slots = asyncio.Semaphore(self.cfg.concurrency)

        async def ask(question: Question, answers: dict[int, Answer], sample: int) -> None:
            async with slots:
                answers[sample] = await self._sample(client, question, sample, sampling)
            if len(answers) == sampling.n:
                done((question, [answers[i] for i in range(sampling.n)]))

        async with self._client() as client:
            tasks = []
            for question in questions:
                answers: dict[int, Answer] = {}
                tasks += [asyncio.create_task(ask(question, answers, sample)) for sample in range(sampling.n)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _sample(self, client: http.Client, question: Question, sample: int, sampling: Sampling) -> Answer:
        sampling.refuse_repetition(self.url)
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": rollout_seed(sampling.seed, question.problem.index, sample) % 2**31,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.top_k > 0:
            body["top_k"] = sampling.top_k
        failed = Answer(problem=question.problem, sample=sample, finish="error")
        if isinstance(question.request, NotText) and not isinstance(question.request, SpokenChat):
            raise EngineError(f"{self.url} is asked in text only: evaluate all else with an engine of their recipe")
        if isinstance(question.request, str):
            path, body["prompt"] = "/v1/completions", question.request
        elif isinstance(question.request, SpokenChat):
            path = "/v1/chat/completions"
            body["messages"] = [{"role": turn.role, "content": _heard(turn)} for turn in question.request.turns]
        else:
            path = "/v1/chat/completions"
            body["messages"] = [message._asdict() for message in question.request]

        async def answer(attempt: int) -> Answer:
            async with client.events(path, body) as chunks:
                return replace(failed, **await _read(chunks, sampling.stop))

        try:
            return await self._patiently(client, path, answer)
        except http.Refused as error:
            return replace(failed, error=str(error))

    async def _patiently(self, client: http.Client, path: str, ask: Callable[[int], Any]) -> Any:
        """Raises Refused for what is wrong with this request, EngineError for what any other would meet too."""
        try:
            return await client.patiently(path, ask, busy=True)
        except http.ServerAway as error:
            raise EngineError(
                f"{error}: start the server there again, or lower concurrency or sampling.max_tokens or raise timeout, "
                "then give the same command"
            ) from error
        except http.Refused as error:
            if error.status in (401, 403):
                where = self.cfg.key_file or "no key_file is set"
                raise EngineError(
                    f"{self.url} does not accept the API key ({where}): {error.message}. Write a valid key "
                    "into server.key_file"
                ) from error
            if error.status == 404:
                raise EngineError(
                    f"{self.url} has no model {self.cfg.model!r} or no such endpoint: {error.message}. "
                    "Correct server.model or the url"
                ) from error
            raise

    async def _only_model(self) -> str:
        async with self._client() as client:
            try:
                listed = await self._patiently(client, "/v1/models", lambda _: client.json("/v1/models"))
            except http.Refused as error:
                raise EngineError(f"{error}: set server.model, or give another url") from None
        names = [model["id"] for model in listed["data"]]
        if len(names) != 1:
            raise ConfigError(f"{self.url} serves {len(names)} models: set server.model to one of {', '.join(names)}")
        return names[0]

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[http.Client]:
        cfg, key = self.cfg, self._key
        async with http.Client(
            self.url, patience=cfg.patience, timeout=cfg.timeout, key=key, keep_alive=True, proxies=True
        ) as client:
            try:
                yield client
            finally:
                self.retries += client.retries


async def _read(chunks: AsyncIterator[Mapping[str, Any]], stop: Sequence[str]) -> dict[str, Any]:
    """The fields of the answer that a stream of chunks makes, up to and with its first stop string. ConnectionError for
    a stream that just ends."""
    text, pieces = "", 0
    usage: int | None = None
    finish: str | None = None
    longest = max(map(len, stop), default=0)
    async for chunk in chunks:
        if chunk.get("usage") is not None:
            usage = chunk["usage"]["completion_tokens"]
        if not chunk.get("choices"):
            continue
        choice = chunk["choices"][0]
        piece = (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""
        finish = choice.get("finish_reason") or finish
        if piece:
            searched = max(0, len(text) - longest + 1)  # a stop string that ends in this piece begins after here
            text, pieces = text + piece, pieces + 1
            ends = [at + len(s) for s in stop if (at := text.find(s, searched)) >= 0]
            if ends:
                return {"text": text[: min(ends)], "tokens": usage or pieces, "finish": "stop"}
    if finish is None:
        raise ConnectionError("the stream ended before the answer did")
    if finish not in ("stop", "length"):
        return {"finish": "error", "error": f"the server ended the answer with {finish!r}"}
    ended: Finish = "stop" if finish == "stop" else "length"
    return {"text": text, "tokens": pieces if usage is None else usage, "finish": ended}


def _heard(turn: SpokenTurn) -> str | list[dict[str, Any]]:
    """Content of a turn: its words, or its recording in the form of OpenAI's API."""
    if turn.file is None:
        return turn.text
    sound = {"data": base64.b64encode(turn.file.read_bytes()).decode(), "format": turn.file.suffix.lstrip(".").lower()}
    return [{"type": "input_audio", "input_audio": sound}]


def _key(file: str | None) -> str:
    """The API key; "none" where no file is named, since the client wants one."""
    if file is None:
        return "none"
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(f"server.key_file {file} does not exist: write the API key into it")
    key = path.read_text().strip()
    if not key:
        raise ConfigError(f"server.key_file {file} is empty: write the API key into it")
    return key
