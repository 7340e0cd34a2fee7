"""An OpenAI-compatible server as an engine: ``vllm serve``, SGLang, llama.cpp, or a paid service.

The server tokenises, so text differs from our own generators in two ways: a special token inside an answer shows only
where the server shows it, and whether a prompt begins with BOS is the server's tokenizer's choice. What a request does
not name, the server chooses: start vLLM with ``--generation-config vllm``, or the model's generation_config.json sets
top_k and penalties.
"""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stepstack.config import ConfigError, Strict
from stepstack.generation import http
from stepstack.generation.types import Answer, Budget, EngineError, Sampling, rollout_seed
from stepstack.harness.config import LONGEST_PATIENCE, MOST_IN_FLIGHT, server_url
from stepstack.harness.engine import Question
from stepstack.harness.engines import openai_api
from stepstack.harness.engines.openai_api import Dialect

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig(Strict):
    """``url``: http://host:port, with or without /v1. ``model``: None takes the one that the server lists.
    ``model_id`` tells its weights from others of the same name (a commit, a hash); None takes what the server lists of
    them. ``key_file`` holds the API key. ``concurrency``: requests in flight. ``patience``: seconds without an answer
    to any request (not up yet, overloaded) before the evaluation stops. ``timeout``: seconds of one answer."""

    type: Literal["server"] = "server"
    url: str
    model: str | None = None
    model_id: str | None = None
    key_file: str | None = None
    concurrency: int = 32
    patience: float = 60.0
    timeout: float = 600.0


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One sample that is asked for; ``answers`` of its question are shared by its samples."""

    question: Question
    sample: int
    path: str
    body: Mapping[str, Any]
    answers: dict[int, Answer] = field(default_factory=dict)


class ServerEngine:
    """Engine over HTTP. Text goes to /v1/completions, chats to /v1/chat/completions, one streamed request a sample.

    The first request to either is sent alone, and settings that the server names as unsupported are left out from then
    on, which each answer records. Stop strings are found here and the stream is hung up, since servers strip them and
    graders read them. ``tokens`` is the server's own count where it came before the stream ended, else the number of
    pieces that held text. ``retries`` counts the requests that were sent again.
    """

    def __init__(self, cfg: ServerConfig):
        """Asks the server for its models unless ``cfg`` names one. EngineError when it does not answer, ConfigError for
        several models, an unreadable key, and a url or a number that cannot be."""
        _check_bounds(cfg)
        self.cfg, self.retries = cfg, 0
        self.url = server_url(cfg.url).rstrip("/").removesuffix("/v1")
        self._key = _key(cfg.key_file)
        self.model = cfg.model or openai_api.one_of(list(self._listed()), self.url)
        self.batch = 4 * cfg.concurrency
        self.facts: Mapping[str, Any] = {"engine": "server"}
        self.dialect, self._probed = Dialect(), set[str]()

    def model_record(self) -> dict[str, Any]:
        """The record of the model: its name there, and its identity as ``cfg`` or the server's list gives it.
        ConfigError where neither tells which weights it has: those of another time could be taken for them."""
        if self.cfg.model_id is not None:
            return {"name": self.model, "sha256": None, "identity": {"id": self.cfg.model_id}}
        row = self._row()
        rows = [row]
        if not openai_api.is_old(row.get("created")):
            http.start(asyncio.sleep(1.1)).result()  # a clock in its place shows another second then
            rows.append(self._row())
        identity = openai_api.identity_of(row) | openai_api.time_of_making(rows)
        if not identity:
            raise ConfigError(
                f"{self.url} does not tell which weights it serves as {self.model!r}: name them with --model-id, such "
                "as a commit, a hash or a date. Results are kept by it, whatever the server's address is"
            )
        return {"name": self.model, "sha256": None, "identity": identity}

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
        budget.refuse_repetition(self.url)
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
        slots = http.Slots(self.cfg.concurrency)

        async def ask(job: SampleRequest) -> None:
            job.answers[job.sample] = await self._sample(client, job, sampling, slots)
            if len(job.answers) == sampling.n:
                done((job.question, [job.answers[i] for i in range(sampling.n)]))

        jobs = [job for question in questions for job in self._jobs(question, sampling)]
        probes = {job.path: job for job in reversed(jobs) if job.path not in self._probed}
        async with self._client() as client:
            for job in probes.values():
                await ask(job)
            self._probed |= probes.keys()
            alone = {id(job) for job in probes.values()}
            tasks = [asyncio.create_task(ask(job)) for job in jobs if id(job) not in alone]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _jobs(self, question: Question, sampling: Sampling) -> Iterator[SampleRequest]:
        """The samples of a question, each with a seed of its own."""
        answers: dict[int, Answer] = {}
        for sample in range(sampling.n):
            seed = rollout_seed(sampling.seed, question.problem.index, sample) % 2**31
            path, body = openai_api.body_of(question, sampling, self.model, seed, self.url)
            yield SampleRequest(question, sample, path, body, answers)

    async def _sample(self, client: http.Client, job: SampleRequest, sampling: Sampling, slots: http.Slots) -> Answer:
        while True:
            sent, left_out = self.dialect.request(job.body), self.dialect.left_out(job.body)
            base = Answer(problem=job.question.problem, sample=job.sample, finish="error", left_out=left_out)

            async def answer(attempt: int, sent: Any = sent, base: Answer = base) -> Answer:
                async with client.events(job.path, sent) as chunks:
                    return replace(base, **await openai_api.read_answer(chunks, sampling))

            try:
                return await self._patiently(client, job.path, answer, slots)
            except http.Refused as error:
                known = set(self.dialect.unsupported)
                if not self.dialect.learn(sent, error):
                    return replace(base, error=str(error))
                for name in self.dialect.unsupported.keys() - known:
                    log.warning("%s does not take %s, which is left out: %s", self.url, name, error.message)

    async def _patiently(
        self, client: http.Client, path: str, ask: Callable[[int], Any], slots: http.Slots | None = None
    ) -> Any:
        """Raises Refused for what is wrong with this request, EngineError for what any other would meet too."""
        try:
            return await client.patiently(path, ask, busy=True, slots=slots)
        except http.ServerAway as error:
            raise EngineError(
                f"{error}: start the server there again, or lower concurrency or sampling.max_tokens or raise patience "
                "or timeout (--concurrency, --max-tokens, --patience, --timeout), then give the same command"
            ) from error
        except http.Refused as error:
            if error.status == 200:
                raise EngineError(f"{error}: no OpenAI-compatible server is there, correct the url") from error
            if error.status in (401, 403):
                where = self.cfg.key_file or "no key_file is set"
                raise EngineError(
                    f"{self.url} does not accept the API key ({where}): {error.message}. Write a valid key "
                    "into a file and name it (--key-file, key_file)"
                ) from error
            if error.status == 404:
                raise EngineError(
                    f"{self.url} has no model {self.cfg.model!r} or no such endpoint: {error.message}. "
                    "Correct server.model or the url"
                ) from error
            raise

    def _listed(self) -> dict[str, Mapping[str, Any]]:
        """Models that the server lists, by id."""

        async def listed() -> Any:
            async with self._client() as client:
                try:
                    return await self._patiently(client, "/v1/models", lambda _: client.json("/v1/models"))
                except http.Refused as error:
                    raise EngineError(f"{error}: set server.model, or give another url") from None

        return openai_api.listed_models(http.start(listed()).result(), self.url)

    def _row(self) -> Mapping[str, Any]:
        """Facts that the server lists of its model; none where it does not list it."""
        return self._listed().get(self.model, {})

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


def _check_bounds(cfg: ServerConfig) -> None:
    """ConfigError for a number of requests or seconds that cannot be."""
    if not 1 <= cfg.concurrency <= MOST_IN_FLIGHT:
        raise ConfigError(f"server.concurrency is {cfg.concurrency}: give 1 to {MOST_IN_FLIGHT} requests")
    for name, seconds in (("patience", cfg.patience), ("timeout", cfg.timeout)):
        if not 0 < seconds <= LONGEST_PATIENCE:
            raise ConfigError(
                f"server.{name} is {seconds:g}: give more than 0 and at most {LONGEST_PATIENCE:g} seconds"
            )


def _key(file: str | None) -> str | None:
    """The API key; None where no file is named."""
    if file is None:
        return None
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(f"server.key_file {file} does not exist: write the API key into it")
    key = path.read_text().strip()
    if not key:
        raise ConfigError(f"server.key_file {file} is empty: write the API key into it")
    return key
