"""An OpenAI-compatible server as an engine: ``vllm serve``, SGLang, llama.cpp, or a paid service.

The server tokenises, so text differs from our own generators in two ways: a special token inside an answer shows only
where the server shows it, and whether a prompt begins with BOS is the server's tokenizer's choice. What a request does
not name, the server chooses: start vLLM with ``--generation-config vllm``, or the model's generation_config.json sets
top_k and penalties.

The ``openai`` package (extra ``eval``) is imported when an engine is made.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepstack.config import ConfigError, Strict
from stepstack.generation.prompts import Pictured
from stepstack.generation.types import EngineError, Sampling, rollout_seed
from stepstack.harness.answers import Completion, Finish
from stepstack.harness.engine import Question

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CONNECT = 30.0  # seconds to get a connection
LONGEST_WAIT = 5.0  # seconds between two attempts


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
        self.model = cfg.model or asyncio.run(self._only_model())
        self.batch = 4 * cfg.concurrency
        self.facts: Mapping[str, Any] = {"engine": "server", "url": self.url, "model": self.model}

    def model_record(self) -> dict[str, Any]:
        """As evaluations record a model; a server tells no hash."""
        return {"name": self.model, "sha256": None}

    def loglikelihood(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        raise EngineError(
            f"the server at {self.url} gives no log-likelihoods of given text: evaluate this task with the model itself"
        )

    def complete(
        self, questions: Sequence[Question], sampling: Sampling
    ) -> Iterator[tuple[Question, list[Completion]]]:
        """Questions as their samples are there. Closing the iterator hangs up what still runs."""
        if sampling.max_length is not None:
            raise EngineError(f"{self.url} counts no prompt tokens for us: set sampling.max_length to null")
        done: queue.SimpleQueue[tuple[Question, list[Completion]] | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()  # in a thread, so that answers flow while those before are graded
        task = loop.create_task(self._ask_all(questions, sampling, done.put))

        def drive() -> None:
            loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())
            done.put(None)

        thread = threading.Thread(target=drive, name="server-engine", daemon=True)
        thread.start()
        try:
            while (item := done.get()) is not None:
                yield item
            task.result()
        finally:
            loop.call_soon_threadsafe(task.cancel)  # nothing where it is over
            thread.join()
            loop.close()

    async def _ask_all(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        done: Callable[[tuple[Question, list[Completion]]], None],
    ) -> None:
        slots = asyncio.Semaphore(self.cfg.concurrency)

        async def ask(question: Question, made: dict[int, Completion], sample: int) -> None:
            async with slots:
                made[sample] = await self._sample(client, question, sample, sampling)
            if len(made) == sampling.n:
                done((question, [made[i] for i in range(sampling.n)]))

        async with self._client() as client:
            tasks = []
            for question in questions:
                made: dict[int, Completion] = {}
                tasks += [asyncio.create_task(ask(question, made, sample)) for sample in range(sampling.n)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _sample(self, client: AsyncOpenAI, question: Question, sample: int, sampling: Sampling) -> Completion:
        from openai import APIStatusError

        options: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": rollout_seed(sampling.seed, question.problem.index, sample) % 2**31,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.top_k > 0:
            options["extra_body"] = {"top_k": sampling.top_k}
        try:
            return await self._patiently(lambda: self._answer(client, question, options, sampling.stop))
        except APIStatusError as error:
            return Completion("", None, 0, "error", f"{self.url}: {error.message[:1000]}")

    async def _answer(
        self, client: AsyncOpenAI, question: Question, options: dict[str, Any], stop: Sequence[str]
    ) -> Completion:
        """One streamed answer. ConnectionError for a stream that just ends."""
        async with asyncio.timeout(self.cfg.timeout):
            stream: Any
            if isinstance(question.request, Pictured):
                raise EngineError(f"{self.url} is asked in text only: evaluate pictures with an engine of their recipe")
            if isinstance(question.request, str):
                stream = await client.completions.create(prompt=question.request, **options)
                async with stream:
                    return await _read(stream, lambda choice: choice.text, stop)
            messages: Any = [message._asdict() for message in question.request]
            stream = await client.chat.completions.create(messages=messages, **options)
            async with stream:
                return await _read(stream, lambda choice: choice.delta.content, stop)

    async def _patiently(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What ``ask`` gives, which is asked again while the server is away or busy.

        Other refusals (4xx) are the caller's APIStatusError; those that every request would meet are EngineErrors.
        """
        from openai import APIError, APIStatusError

        began, wait, attempts = 0.0, 0.1, 0
        while True:
            try:
                return await ask()
            except TimeoutError:
                raise EngineError(
                    f"{self.url}: an answer took longer than timeout: {self.cfg.timeout:g} s. Raise it, lower "
                    "sampling.max_tokens, or lower concurrency"
                ) from None
            # Of APIErrors also connection errors and errors within a stream; a stream may be torn within its JSON.
            except (APIError, ConnectionError, json.JSONDecodeError) as error:
                if isinstance(error, APIStatusError):
                    self._check_usable(error)
                    if error.status_code not in (408, 429) and error.status_code < 500:
                        raise
                now, attempts = time.monotonic(), attempts + 1
                began = now if attempts == 1 else began
                if now - began >= self.cfg.patience:
                    raise EngineError(
                        f"{self.url} did not answer for {self.cfg.patience:g} s ({attempts} attempts; "
                        f"{error.__cause__ or error!r}): start the server there again or lower concurrency, then give "
                        "the same command"
                    ) from error
            self.retries += 1
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _check_usable(self, error: Any) -> None:
        """EngineError for a refusal that no other request would escape."""
        if error.status_code in (401, 403):
            where = self.cfg.key_file or "no key_file is set"
            raise EngineError(f"{self.url} does not accept the API key ({where}): {error.message}") from error
        if error.status_code == 404:
            raise EngineError(
                f"{self.url} has no model {self.cfg.model!r} or no such endpoint: {error.message}"
            ) from error

    async def _only_model(self) -> str:
        async def listed() -> list[str]:
            async with asyncio.timeout(self.cfg.timeout):
                return [model.id async for model in client.models.list()]

        async with self._client() as client:
            names = await self._patiently(listed)
        if len(names) != 1:
            raise ConfigError(f"{self.url} serves {len(names)} models: set server.model to one of {', '.join(names)}")
        return names[0]

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, Timeout

        limits = Timeout(None, connect=CONNECT)  # an answer's own is kept above
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self._key, max_retries=0, timeout=limits)


async def _read(stream: AsyncIterator[Any], words: Callable[[Any], str | None], stop: Sequence[str]) -> Completion:
    """The completion that a stream of chunks makes, up to and with its first stop string; ``words`` of a choice."""
    text, pieces = "", 0
    usage: int | None = None
    finish: str | None = None
    longest = max(map(len, stop), default=0)
    async for chunk in stream:
        if chunk.usage is not None:
            usage = chunk.usage.completion_tokens
        if not chunk.choices:
            continue
        choice = chunk.choices[0]
        piece = words(choice) or ""
        finish = choice.finish_reason or finish
        if piece:
            searched = max(0, len(text) - longest + 1)  # a stop string that ends in this piece begins after here
            text, pieces = text + piece, pieces + 1
            ends = [at + len(s) for s in stop if (at := text.find(s, searched)) >= 0]
            if ends:
                return Completion(text[: min(ends)], None, usage or pieces, "stop")
    if finish is None:
        raise ConnectionError("the stream ended before the answer did")
    if finish not in ("stop", "length"):
        return Completion("", None, 0, "error", f"the server ended the answer with {finish!r}")
    ended: Finish = "stop" if finish == "stop" else "length"
    return Completion(text, None, pieces if usage is None else usage, ended)


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
